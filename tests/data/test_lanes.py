"""Lanes: the plan is as it was without them; with them each rank needs only its lanes' shards, and batches stay."""

import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tacaf.data.augment import AugmentConfig
from tacaf.data.plan import Plan, PlanConfig
from tacaf.data.training_source import TrainingSource
from tacaf.vocabulary import InputError
from tests.data.test_plan import training_set


def plan_of(counts_2I, shard_sizes, seed=3, **config) -> Plan:
    """Shards with these numbers of identities, in order; eight identities a batch in four lanes."""
    found = training_set(counts_2I)
    assert sum(shard_sizes) == found.identities
    found = dataclasses.replace(found, shard_I=np.repeat(np.arange(len(shard_sizes)), shard_sizes))
    values = {"identities_per_batch": 8, "images_per_identity": 2, "lanes": 4, **config}
    return Plan(found, PlanConfig(**values), seed)


def even_plan(**config) -> Plan:
    """96 identities of 5 and 3 images in 24 shards: six shards a lane, twelve steps a cycle, two and a half cycles."""
    return plan_of(np.stack([np.full(96, 5), np.full(96, 3)]), [4] * 24, **config)


def labels_by_lane(plan: Plan, epoch: int, step: int) -> np.ndarray:
    """int64 [lanes, identities of a lane]"""
    label = plan.global_batch(epoch, step).label_B[: plan.config.images_per_modality : plan.config.images_per_identity]
    return label.reshape(plan.config.lanes, -1)


def shards_by_lane(plan: Plan, epoch: int, steps: range) -> list[set[int]]:
    lanes = np.concatenate([labels_by_lane(plan, epoch, step) for step in steps], axis=1)
    return [set(plan.training_set.shard_I[labels].tolist()) for labels in lanes]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "88188da838eb67a8c94f21d9a6c3773aab8764fb87c815a4c37a792bccb995ab"),
        ({"window_shards": 2}, "a19167dbb5873d25eb2f9743a100f0c295d482f0b68e2286ff6b29b1646b59e7"),
        (
            {"window_shards": 2, "sampler": "camera"},
            "b3ab36a651131911fc8d83d8d81f8c5d8d647c0498d0ff5f9f2897621ca577b5",
        ),
    ],
    ids=["whole", "windows", "cameras"],
)
def test_one_lane_is_the_plan_from_before_there_were_lanes(config, expected):
    counts = np.stack([np.arange(41) % 7 + 1, np.arange(41) % 5 + 2])
    values = PlanConfig(identities_per_batch=8, images_per_identity=2, lanes=1, **config)
    plan = Plan(training_set(counts, cameras=3, per_shard=6), values, seed=3)
    found = hashlib.sha256()
    for epoch in (0, 3):
        for step in range(2 * plan.steps_per_cycle):
            for rank in range(2):
                for column in plan.rank_batch(epoch, step, rank, 2):
                    found.update(column.astype("<i8").tobytes())
    assert found.hexdigest() == expected


@settings(max_examples=10)
@given(
    shard_sizes=st.lists(st.integers(1, 12), min_size=8, max_size=12),
    lanes=st.sampled_from([2, 4, 8]),
    window=st.sampled_from([None, 1, 3]),
    epoch=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_uneven_shards_keep_the_promise_of_a_cycle(shard_sizes, lanes, window, epoch, seed):
    """Every identity once a cycle, but for a tail shorter than a batch; and at most one shard more for each border."""
    identities = max(16, sum(shard_sizes))
    shard_sizes = [*shard_sizes[:-1], shard_sizes[-1] + identities - sum(shard_sizes)]
    counts = np.full((2, identities), 3)
    plan = plan_of(counts, shard_sizes, seed, identities_per_batch=16, lanes=lanes, window_shards=window)
    for cycle in range(2):
        steps = range(cycle * plan.steps_per_cycle, (cycle + 1) * plan.steps_per_cycle)
        labels = np.concatenate([labels_by_lane(plan, epoch, step) for step in steps], axis=1)
        assert len(np.unique(labels)) == labels.size == identities // 16 * 16
    in_lanes = shards_by_lane(plan, epoch, range(2 * plan.steps_per_cycle))
    assert sum(len(shards) for shards in in_lanes) <= len(shard_sizes) + lanes - 1


def test_images_are_used_up_before_they_repeat():
    plan = plan_of(np.stack([np.full(96, 6), np.full(96, 4)]), [4] * 24, window_shards=2)
    rows: dict[int, list[int]] = {}
    for step in range(3 * plan.steps_per_cycle):  # a pass over six images, two a cycle
        batch = plan.global_batch(1, step)
        for label in np.unique(batch.label_B):
            rows.setdefault(label, []).extend(batch.row_B[(batch.label_B == label) & (batch.branch_B == 0)].tolist())
    assert len(rows) == 96
    assert all(len(set(own)) == len(own) == 6 for own in rows.values())


@pytest.mark.parametrize("window", [None, 2])
def test_batches_are_the_same_for_every_number_of_ranks_that_divides_the_lanes(window):
    plan = even_plan(window_shards=window)
    cold = even_plan(window_shards=window)
    for step in (31, 0, 12, 30):  # in no order: a batch depends on no other
        whole = plan.global_batch(2, step)
        for ranks in (1, 2, 4):
            parts = [cold.rank_batch(2, step, rank, ranks) for rank in range(ranks)]
            joined = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
            order = np.argsort(joined[4])
            for column, expected in zip(joined, whole, strict=True):
                assert (column[order] == expected).all()
    assert (whole.row_B != even_plan(window_shards=window, seed=4).global_batch(2, step).row_B).any()


def test_each_lane_keeps_to_its_shards_for_an_epoch_and_to_few_of_them_at_a_time():
    plan = even_plan(window_shards=2)
    epochs = [shards_by_lane(plan, epoch, range(plan.steps_per_epoch)) for epoch in range(2)]
    for lanes in epochs:
        assert [len(shards) for shards in lanes] == [6, 6, 6, 6]
        assert set.union(*lanes) == set(range(24))
    assert epochs[0] != epochs[1], "dealt anew"
    windows = [shards_by_lane(plan, 0, range(start, start + 4)) for start in (0, 4, 8)]  # of 8 identities a lane
    for lanes in windows:
        assert [len(shards) for shards in lanes] == [2, 2, 2, 2]
    assert [set.union(*lane) for lane in zip(*windows, strict=True)] == epochs[0]
    assert windows != [shards_by_lane(plan, 0, range(start, start + 4)) for start in (12, 16, 20)]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize(
    ("shard_sizes", "window"), [([4] * 24, 2), ([4] * 24, None), ([1, 9, 2, 17, 3, 30, 5, 5, 20, 4], 1)]
)
def test_a_rank_has_the_shards_of_its_lanes_one_window_ahead(shard_sizes, window, ranks):
    plan = plan_of(np.full((2, 96), 5), shard_sizes, window_shards=window)
    steps = plan.steps_per_epoch
    for rank in range(ranks):
        before = None
        for number in range(3 * steps):
            epoch, step = divmod(number, steps)
            shards = set(plan.training_set.shard_I[plan.rank_batch(epoch, step, rank, ranks).label_B].tolist())
            in_order = plan.shards_ahead(epoch, step, steps, rank, ranks).tolist()
            ahead = set(in_order)
            assert len(ahead) == len(in_order)
            assert shards <= ahead, "what is read now"
            if window == 2:
                assert shards <= set(in_order[: window * 4 // ranks]), "and first"
            if window != 1:  # else a window may be shorter than a step
                assert before is None or shards <= before, "what is read next was named a step before"
            if window == 2:
                assert len(ahead) <= 2 * window * 4 // ranks
            before = ahead


def test_a_plan_without_windows_and_lanes_names_no_shards():
    assert even_plan(lanes=1).shards_ahead(0, 0, 10).tolist() == []


def test_what_lanes_cannot_divide_is_refused():
    for lanes in (3, 5, 8):  # eight identities are four pair groups
        with pytest.raises(ValidationError, match=f"4 pair groups.*got {lanes}"):
            PlanConfig(identities_per_batch=8, lanes=lanes)
    with pytest.raises(InputError, match=r"data\.plan.lanes = 4, got 3 ranks"):
        even_plan().check_ranks(3)
    with pytest.raises(InputError, match=r"data\.plan.lanes = 2, got 4 ranks"):
        TrainingSource(even_plan(lanes=2), AugmentConfig(), rank=0, ranks=4)
    for ranks in (1, 2, 4):
        even_plan().check_ranks(ranks)
    even_plan(lanes=1).check_ranks(4)


def test_lanes_need_shards_and_identities():
    with pytest.raises(InputError, match=r"data\.plan.lanes = 4, got 3"):
        plan_of(np.full((2, 96), 5), [32] * 3)
    plan_of(np.full((2, 96), 5), [24] * 4)
    with pytest.raises(InputError, match=r"identities_per_batch = 8 .* got 7"):  # so every lane has its two
        plan_of(np.full((2, 7), 5), [1] * 7)
