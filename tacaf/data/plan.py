"""The plan: which images make the batch of a step. batch = f(index, seed, epoch, step), and nothing else.

Identities: a permutation per cycle, M consecutive ones a step; a tail shorter than M is dropped and the next cycle
begins. Images of an identity and modality: a permutation per pass, K consecutive ones a cycle, with the same rule for
the tail. So any step is found without walking through the ones before it (method §1).
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, Field, model_validator

from tacaf.data.index import TrainingSet
from tacaf.draws import Stream, permutation, uniform
from tacaf.vocabulary import Branch, InputError, Modality


class PlanConfig(BaseModel, extra="forbid", frozen=True):
    """The make-up of a global batch. It does not depend on the number of ranks."""

    identities_per_batch: int = Field(8, ge=2, description="M: identities in a global batch (LbA, CAJ).")
    images_per_identity: int = Field(4, ge=1, description="K: images of an identity in each modality (LbA, CAJ).")
    pair_group: int = Field(
        2, ge=2, description="Identities that draw negatives from each other; a rank holds whole groups (ours)."
    )
    channel_augment: bool = Field(
        True, description="Add the branch V1: the same visible images, channel-exchanged (CAJ)."
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
        self._identity_order = lru_cache(maxsize=4)(self._draw_identity_order)

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
        label_S = self._identity_order(epoch, cycle)[place * config.identities_per_batch + slot_S]
        row_2SK = np.stack([self._rows(label_S, modality, epoch, cycle) for modality in Modality])
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

    def _draw_identity_order(self, epoch: int, cycle: int) -> np.ndarray:
        return permutation(self.training_set.identities, Stream.IDENTITIES, self.seed, epoch, cycle)

    def _rows(self, label_S: np.ndarray, modality: Modality, epoch: int, cycle: int) -> np.ndarray:
        """K rows for each label, [S, K]: this cycle's part of the pass it falls into."""
        wanted = self.config.images_per_identity
        rows = []
        for label in label_S:
            start, stop = (
                self.training_set.start_2I[modality.code, label],
                self.training_set.stop_2I[modality.code, label],
            )
            count = int(stop - start)
            number, part = divmod(cycle, max(1, count // wanted))
            draw = np.arange(count) + (modality.code << 31)  # the two modalities of an identity draw apart
            order = np.argsort(uniform(Stream.IMAGES, self.seed, epoch, number, int(label), draw), kind="stable")
            chosen = order[part * wanted : (part + 1) * wanted] if count >= wanted else np.resize(order, wanted)
            rows.append(start + chosen)
        return np.stack(rows)
