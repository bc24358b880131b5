"""The plan: layout of a batch, no repeats inside its rules, the same batches for every number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tacaf.data.index import TrainingSet
from tacaf.data.plan import Plan, PlanConfig
from tacaf.vocabulary import Branch, InputError


def training_set(counts_2I, cameras=1, per_shard=1000) -> TrainingSet:
    """Identities with these image counts, visible row first, packed one after another; cameras by turns."""
    counts = np.asarray(counts_2I)
    stops = np.cumsum(counts.T.ravel()).reshape(-1, 2).T
    camid_R = (np.arange(counts.sum()) % cameras).astype(np.int16)
    shard_I = np.arange(counts.shape[1]) // per_shard
    return TrainingSet(np.arange(counts.shape[1]) + 100, stops - counts, stops, (), camid_R, shard_I)


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


@settings(max_examples=40)
@given(
    counts=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=4, max_size=15),
    epoch=st.integers(0, 5),
    seed=st.integers(0, 2**32 - 1),
)
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
    with pytest.raises(ValidationError, match="pair_group"):
        PlanConfig(identities_per_batch=7)
    with pytest.raises(ValidationError, match="equal to 2"):
        PlanConfig(identities_per_batch=1)
    assert PLAN.training_set.identities == 10
    with pytest.raises(InputError, match=r"identities_per_batch = 12 .* got 10; lower it to 8,"):
        Plan(PLAN.training_set, PlanConfig(identities_per_batch=12, pair_group=4), 0)
    with pytest.raises(InputError, match=r"got 10; lower it and data.plan.pair_group, or take a larger split"):
        Plan(PLAN.training_set, PlanConfig(identities_per_batch=12, pair_group=12), 0)
    with pytest.raises(InputError, match="ranks, got 3"):
        PLAN.check_ranks(3)


def test_identities_with_too_few_images_are_counted():
    lengths_2I = PLAN.training_set.stop_2I - PLAN.training_set.start_2I
    for wanted in (1, 5, 9):
        few = sum(min(lengths) < wanted for lengths in lengths_2I.T.tolist())
        assert (f"; {few} identities have fewer than {wanted} images" in PLAN.training_set.describe(wanted)) == (
            few > 0
        )


def plan_with(counts_2I, seed=3, cameras=1, per_shard=1000, **config) -> Plan:
    settings = {"identities_per_batch": 4, "images_per_identity": 4, **config}
    return Plan(training_set(counts_2I, cameras, per_shard), PlanConfig(**settings), seed)


def labels_of_cycle(plan: Plan, epoch: int, cycle: int) -> np.ndarray:
    steps = range(cycle * plan.steps_per_cycle, (cycle + 1) * plan.steps_per_cycle)
    wanted = plan.config.images_per_identity
    return np.concatenate(
        [plan.global_batch(epoch, step).label_B[: plan.config.images_per_modality][::wanted] for step in steps]
    )


def test_windows_keep_to_a_few_shards_and_show_every_identity():
    plan = plan_with(np.full((2, 60), 4), per_shard=5, window_shards=3)
    orders = []
    for cycle in range(3):
        labels = labels_of_cycle(plan, 1, cycle)
        assert sorted(labels.tolist()) == list(range(60)), "each identity once a cycle"
        windows = [set((labels[start : start + 15] // 5).tolist()) for start in range(0, 60, 15)]
        assert [len(window) for window in windows] == [3, 3, 3, 3]
        assert set.union(*windows) == set(range(12))
        orders.append((labels.tolist(), windows))
    assert orders[0][1] != orders[1][1], "other shards together in the next cycle"
    assert orders[0][0][:15] != sorted(orders[0][0][:15])


def test_uneven_shards_and_a_short_last_window():
    counts = np.full((2, 41), 4)
    plan = plan_with(counts, per_shard=7, window_shards=4)  # shards of 7 7 7 7 7 6: windows of four shards and of two
    labels = labels_of_cycle(plan, 0, 0)
    assert len(np.unique(labels)) == len(labels) == 40
    parts = [plan.rank_batch(0, 7, rank, 2) for rank in range(2)]
    whole = plan.global_batch(0, 7)
    assert sorted(np.concatenate([part.row_B for part in parts]).tolist()) == sorted(whole.row_B.tolist())


def test_a_window_of_the_whole_set_is_no_window_but_in_order():
    assert sorted(labels_of_cycle(plan_with(np.full((2, 12), 4), per_shard=5, window_shards=99), 0, 0)) == list(
        range(12)
    )


@pytest.mark.parametrize("wanted", [2, 4, 6])
def test_cameras_take_turns(wanted):
    counts = np.array([[40, 40, 40, 40, 12], [9, 9, 9, 9, 9]])
    plan = plan_with(counts, cameras=4, sampler="camera", images_per_identity=wanted)
    seen = np.zeros((5, 2, 4), dtype=int)
    for step in range(40):
        batch = plan.global_batch(0, step)
        for label, branch, row in zip(batch.label_B, batch.branch_B, batch.row_B, strict=True):
            if branch != Branch.AUGMENTED:
                seen[label, Branch(branch).modality.code, plan.training_set.camid_R[row]] += 1
        for label in np.unique(batch.label_B):
            rows = batch.row_B[(batch.label_B == label) & (batch.branch_B == 0)]
            assert len(set(rows.tolist())) == wanted, "no image twice in a batch"
            cameras = np.bincount(plan.training_set.camid_R[rows], minlength=4)
            assert cameras.max() - cameras.min() <= 1, "as even as K allows"
    assert (seen.max(axis=2) - seen.min(axis=2) <= wanted).all(), "as often as the others over time"


def test_a_camera_that_sits_cycles_out_still_shows_every_image():
    plan = plan_with(np.full((2, 4), 16), cameras=4, sampler="camera", images_per_identity=2)
    batches = [plan.global_batch(0, step) for step in range(8)]  # 16 images of 4 cameras, 2 a step
    rows = np.concatenate([batch.row_B[batch.label_B == 0] for batch in batches])  # other labels begin elsewhere
    assert len(np.unique(rows)) == 2 * 16


def test_without_cameras_the_samplers_agree():
    counts = np.array([[9, 8, 7, 9], [4, 5, 6, 7]])
    plans = [plan_with(counts, sampler=sampler) for sampler in ("identity", "camera")]
    for step in range(5):
        assert (plans[0].global_batch(0, step).row_B == plans[1].global_batch(0, step).row_B).all()


def test_what_to_fetch_ahead_goes_over_into_the_next_cycle_and_epoch():
    plan = plan_with(np.full((2, 60), 4), per_shard=5, window_shards=3)  # 15 steps a cycle, windows of 15 identities

    def shards(epoch, first, count):
        labels = np.concatenate([plan.global_batch(epoch, step).label_B for step in range(first, first + count)])
        return set((labels // 5).tolist())

    for epoch, step, after in ((0, 0, (0, 4)), (0, 14, (0, 15)), (0, 19, (1, 0))):
        ahead = set(plan.shards_ahead(epoch, step, 20).tolist())
        assert shards(epoch, step, 1) <= ahead
        assert shards(*after, 3) <= ahead, (epoch, step)
        assert len(ahead) <= 6
    for step in range(20):  # a batch that begins in one window and ends in the next too
        ahead = set(plan.shards_ahead(0, step, 20).tolist())
        assert shards(0, step, 1) <= ahead, step
        assert len(ahead) <= 6
