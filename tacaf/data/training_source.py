"""What the training graph is given: the bytes and the drawn parameters of a rank's share of a batch."""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np

from tacaf.data.augment import AugmentConfig, Parameters, draw_parameters
from tacaf.data.plan import Plan, PlannedBatch
from tacaf.data.reader import ShardReader
from tacaf.vocabulary import Branch, InputError


class ReadBatch(NamedTuple):
    """A batch whose images were read and not yet decoded."""

    planned: PlannedBatch
    drawn: Parameters
    inputs: tuple[list[np.ndarray], ...]  # of the training graph


class TrainingSource:
    """This rank's share of every batch: pure in the batch's number and in `instead`, an unusable row's substitute.

    An epoch has `steps` batches, by default as many as the plan says. Holds no state, so that several threads may use
    it at once, each with a reader of its own. InputError unless a batch's pair groups and lanes divide among the ranks.
    """

    def __init__(
        self, plan: Plan, augment: AugmentConfig, steps: int | None = None, *, rank: int = 0, ranks: int = 1
    ) -> None:
        plan.check_ranks(ranks)
        self.plan, self.augment, self.steps = plan, augment, steps or plan.steps_per_epoch
        self.rank, self.ranks = rank, ranks

    def where(self, number: int) -> tuple[int, int]:
        """(epoch, step) of the batch with this number, counted from the start of the run."""
        return divmod(number, self.steps)

    def planned(self, number: int, instead: Mapping[int, int]) -> PlannedBatch:
        """The plan of the batch with this number, unusable images replaced."""
        planned = self.plan.rank_batch(*self.where(number), self.rank, self.ranks)
        if not instead:
            return planned
        rows = [instead.get(row, row) for row in planned.row_B.tolist()]
        return planned._replace(row_B=np.array(rows, dtype=np.int64))

    def shards_ahead(self, number: int) -> np.ndarray:
        """The shards that this rank's cache should hold by the batch with this number."""
        return self.plan.shards_ahead(*self.where(number), self.steps, self.rank, self.ranks)

    def read(self, reader: ShardReader, instead: Mapping[int, int], decoded: Collection[int], number: int) -> ReadBatch:
        """The batch with this number; of the rows `decoded` the graph gets the pixels. InputError from the reader."""
        planned = self.planned(number, instead)
        drawn = draw_parameters(self.augment, self.plan.seed, *self.where(number), planned.position_B, planned.branch_B)
        if reader.index.remote and self.plan.config.by_shards:
            reader.keep_only(self.shards_ahead(number))
        inputs = [
            [reader.read(row, row in decoded) for row in planned.row_B[planned.branch_B == branch]]
            for branch in (Branch.VISIBLE, Branch.INFRARED)
        ]
        for branch in self.plan.config.branches:
            own = planned.branch_B == branch
            inputs += [list(drawn.crop_B2[own]), [np.asarray(one) for one in drawn.mirror_B[own]]]
        return ReadBatch(planned, drawn, tuple(inputs))


class Feed:
    """Hands the batches from number `first` on to one graph, and keeps what is wanted again when they come out."""

    def __init__(self, read: Callable[[int], ReadBatch], first: int) -> None:
        self.error: InputError | None = None  # of a reader; what comes out of the graph may be another exception
        self._read, self._first = read, first
        self._waiting: dict[int, ReadBatch] = {}

    def __call__(self, iteration: int) -> tuple[list[np.ndarray], ...]:
        number = self._first + iteration
        try:
            batch = self._read(number)
        except InputError as error:
            self.error = error
            raise
        self._waiting[number] = batch._replace(inputs=())
        return batch.inputs

    def foreseen(self, number: int) -> PlannedBatch | None:
        """The plan of a batch that the graph is working on, if it was given that one already."""
        batch = self._waiting.get(number)
        return None if batch is None else batch.planned

    def came_out(self, number: int) -> tuple[PlannedBatch, Parameters]:
        """Plan and parameters of a batch that the graph is done with."""
        batch = self._waiting.pop(number)
        return batch.planned, batch.drawn
