"""The inputs of the training graph: image bytes and drawn parameters of a rank's share of each batch."""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np

from tacaf.data.augment import AugmentConfig, Parameters, draw_parameters
from tacaf.data.plan import Plan, PlannedBatch
from tacaf.data.reader import ShardReader
from tacaf.vocabulary import Branch, InputError


class ReadBatch(NamedTuple):
    """A batch whose images have been read but not decoded."""

    planned: PlannedBatch
    drawn: Parameters
    inputs: tuple[list[np.ndarray], ...]  # of the training graph


class TrainingSource:
    """This rank's share of every batch, as a pure function of its number and of `instead` (unusable row -> substitute).

    An epoch has `steps` batches, by default the plan's number. It has no state, so several threads may use it at once,
    each with its own reader. Raises InputError unless a batch's pair groups and lanes divide among the ranks.
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
        """The plan of the batch with this number, with unusable images replaced."""
        planned = self.plan.rank_batch(*self.where(number), self.rank, self.ranks)
        if not instead:
            return planned
        rows = [instead.get(row, row) for row in planned.row_B.tolist()]
        return planned._replace(row_B=np.array(rows, dtype=np.int64))

    def shards_ahead(self, number: int) -> np.ndarray:
        """The shards that this rank's cache should have by the batch with this number."""
        return self.plan.shards_ahead(*self.where(number), self.steps, self.rank, self.ranks)

    def read(self, reader: ShardReader, instead: Mapping[int, int], decoded: Collection[int], number: int) -> ReadBatch:
        """Read the batch with this number; the rows `decoded` are passed to the graph as pixels. Raises InputError."""
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
    """Passes the batches from number `first` on to a graph, and keeps their plans until the graph outputs them."""

    def __init__(self, read: Callable[[int], ReadBatch], first: int) -> None:
        self.error: InputError | None = None  # of a reader; the graph may raise another exception in its place
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
        """The plan of a batch that was already passed to the graph, or None."""
        batch = self._waiting.get(number)
        return None if batch is None else batch.planned

    def came_out(self, number: int) -> tuple[PlannedBatch, Parameters]:
        """The plan and the parameters of a batch that the graph has finished."""
        batch = self._waiting.pop(number)
        return batch.planned, batch.drawn
