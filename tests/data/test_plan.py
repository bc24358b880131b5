"""The plan: layout of a batch, no repeats inside its rules, the same batches for every number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tacaf.data.index import TrainingSet
from tacaf.data.plan import Plan, PlanConfig
from tacaf.vocabulary import Branch, InputError


def training_set(counts_2I) -> TrainingSet:
    """Identities with these image counts, visible row first, packed one after another."""
    counts = np.asarray(counts_2I)
    stops = np.cumsum(counts.T.ravel()).reshape(-1, 2).T
    return TrainingSet(np.arange(counts.shape[1]) + 100, stops - counts, stops, ())


PLAN = Plan(
    training_set([[9, 8, 7, 9, 12, 4, 5, 8, 9, 10], [4, 5, 6, 7, 8, 9, 4, 4, 5, 11]]),
    PlanConfig(identities_per_batch=4, images_per_identity=4),
    seed=3,
)


def test_layout():
    batch = PLAN.global_batch(0, 0)
    assert PLAN.images == len(batch.row_B) == 3 * 16
    assert batch.branch_B.tolist() == [0] * 16 + [1] * 16 + [2] * 16
    assert batch.position_B.tolist() == list(range(48))
    assert (batch.row_B[:16] == batch.row_B[16:32]).all(), "V1 shows the images of V0"
    assert len(np.unique(batch.label_B)) == 4
    for row, label, branch in zip(batch.row_B, batch.label_B, batch.branch_B, strict=True):
        code = Branch(branch).modality.code
        assert PLAN.training_set.start_2I[code, label] <= row < PLAN.training_set.stop_2I[code, label]
    assert batch.group_B[:16].tolist() == [0] * 8 + [1] * 8


def test_without_augmentation_there_is_no_v1():
    plan = Plan(PLAN.training_set, PlanConfig(identities_per_batch=4, channel_augment=False), seed=3)
    batch = plan.global_batch(0, 0)
    assert set(batch.branch_B.tolist()) == {0, 2}
    assert sorted(batch.position_B.tolist()) == [*range(16), *range(32, 48)], (
        "a position means the same with and without V1"
    )


def test_steps_per_epoch_is_the_larger_modality():
    assert PLAN.steps_per_epoch == -(-81 // 16)


@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_share_the_global_batch(ranks):
    whole = PLAN.global_batch(2, 5)
    parts = [PLAN.rank_batch(2, 5, rank, ranks) for rank in range(ranks)]
    joined = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
    order = np.argsort(joined[4])
    for column, expected in zip(joined, whole, strict=True):
        assert (column[order] == expected).all()


def test_four_ranks():
    plan = Plan(PLAN.training_set, PlanConfig(identities_per_batch=8), seed=3)
    parts = [plan.rank_batch(0, 1, rank, 4) for rank in range(4)]
    order = np.argsort(np.concatenate([part.position_B for part in parts]))
    assert (np.concatenate([part.row_B for part in parts])[order] == plan.global_batch(0, 1).row_B).all()
    for part in parts:
        assert len(np.unique(part.group_B)) == 1
        assert len(np.unique(part.label_B)) == 2


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=4, max_size=15),
    epoch=st.integers(0, 5), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_no_repeats_inside_a_cycle_and_a_pass(counts, epoch, seed):
    plan = Plan(training_set(np.array(counts).T), PlanConfig(identities_per_batch=4, images_per_identity=2), seed)
    cycles = 4
    seen: dict[tuple[int, int, int], list[int]] = {}
    for cycle in range(cycles):
        batches = [
            plan.global_batch(epoch, cycle * plan.steps_per_cycle + place) for place in range(plan.steps_per_cycle)
        ]
        labels = np.concatenate([batch.label_B[batch.branch_B == 0][::2] for batch in batches])
        assert len(np.unique(labels)) == len(labels), "an identity once per cycle"
        for batch in batches:
            for branch in (0, 2):
                for label in np.unique(batch.label_B):
                    rows = batch.row_B[(batch.branch_B == branch) & (batch.label_B == label)].tolist()
                    count = counts[label][branch // 2]
                    number = cycle // max(1, count // 2)
                    seen.setdefault((label, branch, number), []).extend(rows if count >= 2 else set(rows))
                    assert len(set(rows)) == min(count, 2)
    for (label, branch, _), rows in seen.items():
        if counts[label][branch // 2] >= 2:
            assert len(set(rows)) == len(rows), "an image once per pass"


def test_epochs_and_seeds_differ():
    rows = PLAN.global_batch(0, 0).row_B.tolist()
    assert rows != PLAN.global_batch(1, 0).row_B.tolist()
    assert rows != Plan(PLAN.training_set, PLAN.config, seed=4).global_batch(0, 0).row_B.tolist()


def test_any_step_cold_equals_in_sequence():
    in_sequence = [PLAN.global_batch(0, step).row_B.tolist() for step in range(9)]
    cold = Plan(PLAN.training_set, PLAN.config, seed=3).global_batch(0, 8).row_B.tolist()
    assert cold == in_sequence[8]


def test_bad_combinations():
    with pytest.raises(ValidationError, match="multiple of pair_group"):
        PlanConfig(identities_per_batch=7)
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        PlanConfig(identities_per_batch=1)
    with pytest.raises(InputError, match="identities_per_batch = 12"):
        Plan(PLAN.training_set, PlanConfig(identities_per_batch=12), 0)
    with pytest.raises(InputError, match="divide among the ranks, got 3"):
        PLAN.check_ranks(3)


def test_short_identities_are_counted():
    assert PLAN.training_set.short_of(5) == 4
