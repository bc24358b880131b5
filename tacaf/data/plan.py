"""The plan: which images make up the batch of a step, as a pure function of (index, seed, epoch, step).

Identities: a random order per cycle, of which each step takes M consecutive ones; a tail shorter than M is dropped and
the next cycle begins. Images of an identity and modality: a permutation per pass, of which each cycle takes K
consecutive ones, with the same rule for the tail. So any step is computed without the ones before it, at a cost that
depends neither on the step nor on the number of identities (method §1). With windows or lanes, consecutive steps take
their identities from a few shards (`shard_order.py`).
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from tacaf.data.index import TrainingSet
from tacaf.data.shard_order import ShardOrder
from tacaf.draws import Stream, permuted, uniform
from tacaf.settings import Settings
from tacaf.vocabulary import Branch, InputError, Modality


class PlanConfig(Settings):
    """The make-up of a global batch. It does not depend on the number of ranks."""

    identities_per_batch: int = Field(8, ge=2, le=2**14, description="M: identities in a global batch (LbA, CAJ).")
    images_per_identity: int = Field(
        4, ge=1, le=2**10, description="K: images of an identity in each modality (LbA, CAJ)."
    )
    pair_group: int = Field(
        2,
        ge=2,
        le=2**14,
        description="Identities that draw negatives from each other; a group is never split between ranks (ours).",
    )
    channel_augment: bool = Field(
        True, description="Add a third branch: the same visible images with exchanged channels (CAJ)."
    )
    sampler: Literal["identity", "camera"] = Field(
        "identity",
        description=(
            "identity: an identity's images of a modality in random order. camera: its cameras in rotation, so that"
            " each contributes equally many images, however many it has (ours)."
        ),
    )
    window_shards: int | None = Field(
        None,
        ge=1,
        le=10**9,
        description=(
            "For a set larger than the node's cache: each lane takes its identities from this many random shards at a"
            " time, then from the next ones; the cache must have room for two such windows for every lane of the node."
            " null: from all shards of the lane, which without lanes is the whole set (ours)."
        ),
    )
    lanes: int = Field(
        1,
        ge=1,
        le=2**13,
        description=(
            "Number of lanes. Each lane fills an equal part of every batch from its own shards, so that a node fetches"
            " only the shards of its lanes. It must be a multiple of the number of ranks. 1: no lanes (ours)."
        ),
    )

    @model_validator(mode="after")
    def _whole_groups(self) -> "PlanConfig":
        if self.identities_per_batch % self.pair_group:
            raise ValueError(
                f"expected identities_per_batch to be a multiple of pair_group, got {self.identities_per_batch} and"
                f" {self.pair_group}; change one of them"
            )
        if self.pair_groups % self.lanes:
            raise ValueError(
                f"expected lanes to divide the {self.pair_groups} pair groups of a batch (identities_per_batch /"
                f" pair_group), got {self.lanes}; change one of the three"
            )
        return self

    @property
    def pair_groups(self) -> int:
        """Pair groups of a global batch."""
        return self.identities_per_batch // self.pair_group

    @property
    def by_shards(self) -> bool:
        """Whether the shards that a step needs are known, because identities come from a few of them at a time."""
        return self.window_shards is not None or self.lanes > 1

    @property
    def images_per_modality(self) -> int:
        return self.identities_per_batch * self.images_per_identity

    @property
    def branches(self) -> tuple[Branch, ...]:
        return tuple(Branch) if self.channel_augment else (Branch.VISIBLE, Branch.INFRARED)


class PlannedBatch(NamedTuple):
    """The rows of a batch, branch-major, as int64 arrays. V1 has the same rows as V0."""

    row_B: np.ndarray
    label_B: np.ndarray
    branch_B: np.ndarray
    group_B: np.ndarray
    position_B: np.ndarray


class Plan:
    """The batches of a training set. It has no state: every method is a pure function of its arguments."""

    def __init__(self, training_set: TrainingSet, config: PlanConfig, seed: int) -> None:
        if training_set.identities < config.identities_per_batch:
            possible = training_set.identities // config.pair_group * config.pair_group
            remedy = f"lower it to {possible}" if possible else "lower it and data.plan.pair_group"
            raise InputError(
                f"expected at least data.plan.identities_per_batch = {config.identities_per_batch} identities with both"
                f" modalities, got {training_set.identities}; {remedy}, or take a larger split"
            )
        self.training_set, self.config, self.seed = training_set, config, seed
        self.steps_per_epoch = math.ceil(max(training_set.images) / config.images_per_modality)
        self.steps_per_cycle = training_set.identities // config.identities_per_batch
        self._order = _order_by_shards(training_set, config, seed) if config.by_shards else None

    @property
    def images(self) -> int:
        """Images of a global batch, all branches."""
        return self.config.images_per_modality * len(self.config.branches)

    def check_ranks(self, ranks: int) -> None:
        """Raise InputError unless every rank gets equally many whole pair groups and, with lanes, whole lanes."""
        config, groups = self.config, self.config.pair_groups
        if config.lanes > 1 and config.lanes % ranks:
            raise InputError(
                f"expected a number of ranks that divides data.plan.lanes = {config.lanes}, got {ranks} ranks; take"
                " another number of ranks, or start a new run with other lanes"
            )
        if groups % ranks:
            raise InputError(
                f"expected the {groups} pair groups of a batch (identities_per_batch / pair_group) to divide among the"
                f" ranks, got {ranks} ranks; take a number of ranks that divides {groups}, or another"
                " data.plan.identities_per_batch"
            )

    def global_batch(self, epoch: int, step: int) -> PlannedBatch:
        """The whole batch: in each branch, M identities with K images each."""
        return self.rank_batch(epoch, step, 0, 1)

    def rank_batch(self, epoch: int, step: int, rank: int, ranks: int) -> PlannedBatch:
        """A rank's share of the global batch, in whole pair groups, with the positions in the global batch."""
        config = self.config
        slot_S = self._slots(rank, ranks)
        cycle, place = divmod(step, self.steps_per_cycle)
        label_S = self._labels(slot_S, epoch, cycle, place)
        row_2SK = self._rows(label_S, epoch, cycle)
        per_branch = row_2SK[0].size
        position_SK = slot_S[:, None] * config.images_per_identity + np.arange(config.images_per_identity)
        branch_X = np.array([int(branch) for branch in config.branches])
        repeat = len(branch_X)
        return PlannedBatch(
            row_B=np.concatenate([row_2SK[branch.modality.code].ravel() for branch in config.branches]),
            label_B=np.tile(np.repeat(label_S, config.images_per_identity), repeat),
            branch_B=np.repeat(branch_X, per_branch),
            group_B=np.tile(np.repeat(slot_S // config.pair_group, config.images_per_identity), repeat),
            position_B=np.concatenate(
                [branch * config.images_per_modality + position_SK.ravel() for branch in branch_X]
            ),
        )

    def shards_ahead(self, epoch: int, step: int, steps_per_epoch: int, rank: int = 0, ranks: int = 1) -> np.ndarray:
        """The shards that a rank's cache should have by this step, int64, each once.

        First those of its lanes' windows, then those of the next windows. Empty if identities come from the whole set.
        """
        if self._order is None:
            return np.empty(0, dtype=np.int64)
        return self._order.ahead(self._slots(rank, ranks), epoch, step, steps_per_epoch)

    def _slots(self, rank: int, ranks: int) -> np.ndarray:
        """The positions of a rank's identities among those of the global batch, int64 [S]."""
        share = self.config.identities_per_batch // ranks
        return np.arange(rank * share, (rank + 1) * share)

    def _labels(self, slot_S: np.ndarray, epoch: int, cycle: int, place: int) -> np.ndarray:
        """The labels in these slots of the batch at step `place` of the cycle, int64 [S]."""
        if self._order is not None:
            return self._order.labels(slot_S, epoch, cycle, place)
        place_S = place * self.config.identities_per_batch + slot_S
        return permuted(place_S, self.training_set.identities, Stream.IDENTITIES, self.seed, epoch, cycle)

    def _rows(self, label_S: np.ndarray, epoch: int, cycle: int) -> np.ndarray:
        """K rows of each modality for each label, [2, S, K]: this cycle's part of its pass over the images."""
        groups = [
            group
            for modality in Modality
            for slot, label in enumerate(label_S.tolist())
            for group in self._groups(modality, slot, label, cycle)
        ]
        # One draw for all groups, because most of the few milliseconds of a batch are the overhead of calls.
        count_G = np.array([len(group.row) for group in groups])
        part_of_G = np.maximum(1, count_G // np.array([group.take for group in groups]))
        pass_G, part_G = np.divmod(np.array([group.cycle for group in groups]), part_of_G)
        of = np.repeat(np.arange(len(groups)), count_G)
        label_G = np.array([group.label for group in groups])
        draw = np.concatenate([group.draw for group in groups])
        shuffle = uniform(Stream.IMAGES, self.seed, epoch, pass_G[of], label_G[of], draw)
        row = np.concatenate([group.row for group in groups])[np.lexsort((shuffle, of))]
        row_2SK = np.empty((2, len(label_S), self.config.images_per_identity), dtype=np.int64)
        for group, order, part in zip(groups, np.split(row, np.cumsum(count_G)[:-1]), part_G, strict=True):
            first = part * group.take
            chosen = order[first : first + len(group.column)]
            if len(order) < group.take:
                chosen = np.resize(order, len(group.column))
            row_2SK[group.code, group.slot, group.column] = chosen
        return row_2SK

    def _groups(self, modality: Modality, slot: int, label: int, cycle: int) -> list["_Group"]:
        """The groups of images that fill the K columns of one identity and modality: one, or one per camera."""
        columns, code = self.config.images_per_identity, modality.code
        start, stop = (int(bound[code, label]) for bound in (self.training_set.start_2I, self.training_set.stop_2I))
        row = np.arange(start, stop)
        draw = row - start + (code << 31)  # so that the two modalities of an identity have different draws
        if self.config.sampler == "identity":
            return [_Group(code, slot, label, row, draw, np.arange(columns), columns, cycle)]
        camid = np.asarray(self.training_set.camid_R[start:stop])
        cameras = np.unique(camid)
        # Cameras fill columns in rotation, over all cycles; adding the label lets identities start with different ones.
        round_K, turn_K = np.divmod(cycle * columns + np.arange(columns) + label, len(cameras))
        take = -(-columns // len(cameras))
        groups = []
        for turn, camera in enumerate(cameras):
            column, own = np.flatnonzero(turn_K == turn), camid == camera
            if len(column):
                # With fewer columns than cameras, a camera is absent from some cycles and counts only its own.
                count = int(round_K[column[0]]) if columns < len(cameras) else cycle
                groups.append(_Group(code, slot, label, row[own], draw[own], column, take, count))
        return groups


class _Group(NamedTuple):
    """Images that fill some columns of a batch. Each cycle uses up `take` of them."""

    code: int  # the modality's
    slot: int
    label: int
    row: np.ndarray
    draw: np.ndarray
    column: np.ndarray
    take: int
    cycle: int


def _order_by_shards(training_set: TrainingSet, config: PlanConfig, seed: int) -> ShardOrder:
    """The order of identities with windows or lanes. Raises InputError if there are fewer shards than lanes."""
    shards = len(training_set.shard_bounds()) - 1
    if shards < config.lanes:
        raise InputError(
            f"expected a shard of training identities for each of the data.plan.lanes = {config.lanes}, got {shards};"
            " pack the set into more shards (--shard-mib), or take fewer lanes"
        )
    return ShardOrder(training_set, config.identities_per_batch, config.lanes, config.window_shards, seed)
