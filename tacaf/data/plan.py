"""The plan: which images make the batch of a step. batch = f(index, seed, epoch, step), and nothing else.

Identities: a random order per cycle, M consecutive ones a step; a tail shorter than M is dropped and the next cycle
begins. Images of an identity and modality: a permutation per pass, K consecutive ones a cycle, with the same rule for
the tail. So any step is found without walking through the ones before it, at a cost that depends neither on the step
nor on the number of identities (method §1).
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from tacaf.data.index import TrainingSet
from tacaf.draws import Stream, permutation, permuted, uniform
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
        description="Identities that draw negatives from each other; a rank holds whole groups (ours).",
    )
    channel_augment: bool = Field(
        True, description="Add a third branch: the same visible images with exchanged channels (CAJ)."
    )
    sampler: Literal["identity", "camera"] = Field(
        "identity",
        description=(
            "identity: an identity's images of a modality in random order. camera: its cameras take turns, so that"
            " each is seen as often as the others, however many images it has (ours)."
        ),
    )
    window_shards: int | None = Field(
        None,
        ge=1,
        le=10**9,
        description=(
            "For a set larger than the node's cache: identities come from this many random shards at a time, then from"
            " the next ones; the cache must hold two such windows. null: from the whole set (ours)."
        ),
    )

    @model_validator(mode="after")
    def _whole_groups(self) -> "PlanConfig":
        if self.identities_per_batch % self.pair_group:
            raise ValueError(
                f"expected identities_per_batch to be a multiple of pair_group, got {self.identities_per_batch} and"
                f" {self.pair_group}; change one of them"
            )
        return self

    @property
    def images_per_modality(self) -> int:
        return self.identities_per_batch * self.images_per_identity

    @property
    def branches(self) -> tuple[Branch, ...]:
        return tuple(Branch) if self.channel_augment else (Branch.VISIBLE, Branch.INFRARED)


class PlannedBatch(NamedTuple):
    """Rows of a batch, branch-major, as int64 arrays. V1's rows equal V0's."""

    row_B: np.ndarray
    label_B: np.ndarray
    branch_B: np.ndarray
    group_B: np.ndarray
    position_B: np.ndarray


class Plan:
    """Batches of a training set. Holds no state: every method is a function of its arguments."""

    def __init__(self, training_set: TrainingSet, config: PlanConfig, seed: int) -> None:
        if training_set.identities < config.identities_per_batch:
            raise InputError(
                f"expected at least data.plan.identities_per_batch = {config.identities_per_batch} identities with both"
                f" modalities, got {training_set.identities}; lower it (a multiple of pair_group) or take a larger"
                " split"
            )
        self.training_set, self.config, self.seed = training_set, config, seed
        self.steps_per_epoch = math.ceil(max(training_set.images) / config.images_per_modality)
        self.steps_per_cycle = training_set.identities // config.identities_per_batch
        self._shard_bounds = training_set.shard_bounds() if config.window_shards else None
        self._drawn: dict[tuple[int, int], _Windows] = {}

    @property
    def images(self) -> int:
        """Images of a global batch, all branches."""
        return self.config.images_per_modality * len(self.config.branches)

    def check_ranks(self, ranks: int) -> None:
        """InputError unless whole pair groups divide among the ranks."""
        groups = self.config.identities_per_batch // self.config.pair_group
        if groups % ranks:
            raise InputError(
                f"expected the {groups} pair groups of a batch (identities_per_batch / pair_group) to divide among the"
                f" ranks, got {ranks} ranks; take a number of ranks that divides {groups}, or another"
                " data.plan.identities_per_batch"
            )

    def global_batch(self, epoch: int, step: int) -> PlannedBatch:
        """The whole batch: in each branch M identities, K slots each."""
        return self.rank_batch(epoch, step, 0, 1)

    def rank_batch(self, epoch: int, step: int, rank: int, ranks: int) -> PlannedBatch:
        """A rank's identities of the global batch, whole groups, with their positions in the global batch."""
        config = self.config
        share = config.identities_per_batch // ranks
        slot_S = np.arange(rank * share, (rank + 1) * share)
        cycle, place = divmod(step, self.steps_per_cycle)
        label_S = self._labels(place * config.identities_per_batch + slot_S, epoch, cycle)
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

    def _labels(self, place_S: np.ndarray, epoch: int, cycle: int) -> np.ndarray:
        """The labels at these places of the cycle's order, int64 [S]."""
        if self.config.window_shards is None:
            return permuted(place_S, self.training_set.identities, Stream.IDENTITIES, self.seed, epoch, cycle)
        windows = self._windows(epoch, cycle)
        window_S = np.searchsorted(windows.end_W, place_S, "right")
        label_S = np.empty_like(place_S)
        for window in np.unique(window_S):
            here = window_S == window
            start = windows.end_W[window - 1] if window else 0
            size = int(windows.end_W[window] - start)
            key = (Stream.IDENTITIES, self.seed, epoch, cycle)
            inside = start + permuted(place_S[here] - start, size, *key, position=int(window))
            shard = np.searchsorted(windows.shard_end_X, inside, "right")
            label_S[here] = inside - windows.shard_end_X[shard] + windows.label_stop_X[shard]
        return label_S

    def shards_ahead(self, epoch: int, step: int, steps_per_epoch: int) -> np.ndarray:
        """The shards of the step's window and of the one after it, int64; what a cache should hold by then."""
        if self.config.window_shards is None:
            return np.empty(0, dtype=np.int64)
        batch, wide = self.config.identities_per_batch, self.config.window_shards
        cycle, place = divmod(step, self.steps_per_cycle)
        windows = self._windows(epoch, cycle)
        window = int(np.searchsorted(windows.end_W, (place + 1) * batch - 1, "right"))
        shards = windows.shard_X[window * wide : (window + 1) * wide]
        if cycle * self.steps_per_cycle + windows.end_W[window] // batch >= steps_per_epoch:
            after = self._windows(epoch + 1, 0).shard_X[:wide]
        elif window + 1 < len(windows.end_W):
            after = windows.shard_X[(window + 1) * wide : (window + 2) * wide]
        else:
            after = self._windows(epoch, cycle + 1).shard_X[:wide]
        return np.union1d(shards, after)

    def _windows(self, epoch: int, cycle: int) -> "_Windows":
        """The windows of a cycle; the last few are kept, because a cycle has many steps."""
        found = self._drawn.get((epoch, cycle))
        if found is None:
            found = self._draw_windows(epoch, cycle)
            kept = self._drawn if len(self._drawn) <= 2 else {}
            self._drawn = {**kept, (epoch, cycle): found}  # a new one: other threads may be looking at the old one
        return found

    def _draw_windows(self, epoch: int, cycle: int) -> "_Windows":
        """The shards in the random order of this cycle, cut into windows."""
        bounds = self._shard_bounds
        assert bounds is not None, "only asked for where there are windows"
        order = permutation(len(bounds) - 1, Stream.WINDOWS, self.seed, epoch, cycle)
        shard_end_X = np.cumsum(np.diff(bounds)[order])
        wide = self.config.window_shards or len(order)
        last = np.minimum(np.arange(wide - 1, len(order) + wide - 1, wide), len(order) - 1)
        shard_X = self.training_set.shard_I[bounds[:-1]][order].astype(np.int64)
        return _Windows(shard_X, shard_end_X, bounds[1:][order], shard_end_X[last])

    def _rows(self, label_S: np.ndarray, epoch: int, cycle: int) -> np.ndarray:
        """K rows of each modality for each label, [2, S, K]: this cycle's part of the pass it falls into."""
        groups = [
            group
            for modality in Modality
            for slot, label in enumerate(label_S.tolist())
            for group in self._groups(modality, slot, label, cycle)
        ]
        # one draw for all groups: a batch costs a few milliseconds, most of them the calls
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
        """The images among which the K columns of one identity and modality are filled: all, or one group a camera."""
        wanted, code = self.config.images_per_identity, modality.code
        start, stop = (int(bound[code, label]) for bound in (self.training_set.start_2I, self.training_set.stop_2I))
        row = np.arange(start, stop)
        draw = row - start + (code << 31)  # the two modalities of an identity draw apart
        if self.config.sampler == "identity":
            return [_Group(code, slot, label, row, draw, np.arange(wanted), wanted, cycle)]
        camid = np.asarray(self.training_set.camid_R[start:stop])
        cameras = np.unique(camid)
        # column j of cycle t belongs to the camera whose turn it is; the label lets identities begin elsewhere
        round_K, turn_K = np.divmod(cycle * wanted + np.arange(wanted) + label, len(cameras))
        take = -(-wanted // len(cameras))
        groups = []
        for turn, camera in enumerate(cameras):
            column, own = np.flatnonzero(turn_K == turn), camid == camera
            if len(column):
                # with fewer columns than cameras a camera sits cycles out, and counts its own
                count = int(round_K[column[0]]) if wanted < len(cameras) else cycle
                groups.append(_Group(code, slot, label, row[own], draw[own], column, take, count))
        return groups


class _Group(NamedTuple):
    """Images among which some columns of a batch are filled; `take` of them are used up a cycle."""

    code: int  # the modality's
    slot: int
    label: int
    row: np.ndarray
    draw: np.ndarray
    column: np.ndarray
    take: int
    cycle: int


class _Windows(NamedTuple):
    """The shards in a cycle's order: where each shard (X) and each window (W) ends in the order of identities."""

    shard_X: np.ndarray
    shard_end_X: np.ndarray
    label_stop_X: np.ndarray
    end_W: np.ndarray
