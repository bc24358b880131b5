"""When the losses show that a network has collapsed: the warning comes once, and not for a training that learns."""

import math

import pytest

from tacaf.losses.total import LossConfig
from tacaf.train.collapse import STEPS, CollapseWatch

IDENTITIES = 300


def said(watch: CollapseWatch, steps: list[tuple[int, float, float]]) -> list[int]:
    """The steps (epoch, identity loss, triplet) that warn, by their number from 1."""
    return [
        number
        for number, (epoch, identity, triplet) in enumerate(steps, 1)
        if watch.step(epoch, {"loss": 1.0, "identity": identity, "triplet": triplet}) is not None
    ]


@pytest.mark.parametrize(("kind", "value"), [("batch_hard", 0.3), ("wrt", math.log(2)), ("adp", math.log(2))])
def test_losses_that_stay_at_those_of_equal_features_are_told_once(kind, value):
    watch = CollapseWatch(LossConfig(triplet=kind), IDENTITIES)
    guessing = math.log(IDENTITIES)
    assert said(watch, [(1, guessing, value)] * 3 * STEPS) == [STEPS]


def test_the_first_epoch_does_not_count():
    watch = CollapseWatch(LossConfig(), IDENTITIES)
    collapsed = (math.log(IDENTITIES), 0.3)
    assert said(watch, [(0, *collapsed)] * 2 * STEPS + [(1, *collapsed)] * STEPS) == [3 * STEPS]


@pytest.mark.parametrize(
    ("identity", "triplet"),
    [
        (5.7, 0.31),  # an untrained classifier with features that differ
        (4.1, 0.3),  # a triplet near its margin in a training that learns
        (float("nan"), 0.3),
    ],
)
def test_a_training_that_learns_is_not_warned(identity, triplet):
    watch = CollapseWatch(LossConfig(), IDENTITIES)
    assert said(watch, [(1, identity, triplet)] * 3 * STEPS) == []


def test_the_steps_must_follow_one_another():
    watch = CollapseWatch(LossConfig(), IDENTITIES)
    collapsed = (1, math.log(IDENTITIES), 0.3)
    assert said(watch, ([collapsed] * (STEPS - 1) + [(1, 5.6, 0.4)]) * 5) == []
