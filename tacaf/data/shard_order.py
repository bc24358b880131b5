"""The order of a cycle's identities with windows and lanes, which let consecutive steps use only a few shards.

Windows: the shards are put in a random order and taken `window_shards` at a time; the identities of a window are in
random order. Lanes: a batch is divided into equal parts, and each part has its own shards for an epoch, so that a node
needs only the shards of its lanes. All lanes get equally many identities, so a lane can end within a shard; the two
lanes that share it take different identities from it.

Array suffixes: S slots of a batch, N shards, X pieces of shards (a whole shard, or a lane's part of one), W windows,
L lanes.
"""

from typing import NamedTuple

import numpy as np

from tacaf.data.index import TrainingSet
from tacaf.draws import Stream, permutation, permuted, uniform


class ShardOrder:
    """Which identities a step takes, and in which shards they are. Every method is a pure function of its arguments.

    `window_shards` is the number of shards that each lane takes at a time; None means all shards of the lane.
    """

    def __init__(
        self, training_set: TrainingSet, identities_per_batch: int, lanes: int, window_shards: int | None, seed: int
    ) -> None:
        self._bounds = training_set.shard_bounds()
        self._shard_N = training_set.shard_I[self._bounds[:-1]].astype(np.int64)
        self._lanes, self._wide, self._seed = lanes, window_shards, seed
        self._per_lane = identities_per_batch // lanes
        self._steps_per_cycle = training_set.identities // identities_per_batch
        # Lane l has the positions start[l] <= position < start[l + 1] of every cycle's order.
        self._lane_start = np.arange(lanes + 1) * training_set.identities // lanes
        self._drawn: dict[tuple[int, int], _Cycle] = {}

    def labels(self, slot_S: np.ndarray, epoch: int, cycle: int, place: int) -> np.ndarray:
        """The labels in these slots of the batch at step `place` of the cycle, int64 [S]."""
        drawn = self._cycle(epoch, cycle)
        lane_S, inside_S = np.divmod(slot_S, self._per_lane)
        place_S = self._lane_start[lane_S] + place * self._per_lane + inside_S
        window_S = np.searchsorted(drawn.window_end_W, place_S, "right")
        label_S = np.empty_like(place_S)
        for window in np.unique(window_S).tolist():
            here = window_S == window
            start = int(drawn.window_end_W[window - 1]) if window else 0
            size = int(drawn.window_end_W[window]) - start
            key = (Stream.IDENTITIES, self._seed, epoch, cycle)
            shuffled = start + permuted(place_S[here] - start, size, *key, position=window)
            piece = np.searchsorted(drawn.end_X, shuffled, "right")
            label_S[here] = shuffled - drawn.end_X[piece] + drawn.label_stop_X[piece]
        return label_S

    def ahead(self, slot_S: np.ndarray, epoch: int, step: int, steps_per_epoch: int) -> np.ndarray:
        """The shards that the lanes of these slots use at this step, then those of each lane's next window.

        int64, each shard once.
        """
        cycle, place = divmod(step, self._steps_per_cycle)
        drawn = self._cycle(epoch, cycle)
        lane_L = np.unique(slot_S // self._per_lane)
        start_L = self._lane_start[lane_L]
        place_L = start_L + place * self._per_lane
        first_L = np.searchsorted(drawn.window_end_W, place_L, "right")
        last_L = np.searchsorted(drawn.window_end_W, place_L + self._per_lane - 1, "right")
        next_L = (drawn.window_end_W[first_L] - start_L) // self._per_lane  # where in the cycle the next window begins
        in_epoch_L = cycle * self._steps_per_cycle + next_L < steps_per_epoch
        in_cycle_L = in_epoch_L & (next_L < self._steps_per_cycle)
        parts = [drawn.shards_of(first_L, last_L), drawn.shards_of(first_L, first_L + in_cycle_L)]
        for (later_epoch, later_cycle), lanes in (
            ((epoch, cycle + 1), lane_L[in_epoch_L & ~in_cycle_L]),
            ((epoch + 1, 0), lane_L[~in_epoch_L]),
        ):
            if len(lanes):
                later = self._cycle(later_epoch, later_cycle)
                window_L = np.searchsorted(later.window_end_W, self._lane_start[lanes], "right")
                parts.append(later.shards_of(window_L, window_L))
        shards, first_place = np.unique(np.concatenate(parts), return_index=True)
        return shards[np.argsort(first_place)]

    def _cycle(self, epoch: int, cycle: int) -> "_Cycle":
        """The order of a cycle. The last few are cached, because a cycle has many steps."""
        drawn = self._drawn.get((epoch, cycle))
        if drawn is None:
            drawn = self._draw(epoch, cycle)
            kept = self._drawn if len(self._drawn) <= 2 else {}
            self._drawn = {
                **kept,
                (epoch, cycle): drawn,
            }  # a new dictionary, as other threads may be reading the old one
        return drawn

    def _draw(self, epoch: int, cycle: int) -> "_Cycle":
        """Each lane's pieces in the random order of this cycle, divided into windows."""
        pieces = self._deal(epoch)
        pieces_number = np.arange(len(pieces.lane_X))
        key_X = uniform(Stream.WINDOWS, self._seed, epoch, cycle, draw=pieces_number)
        order = np.lexsort((key_X, pieces.lane_X))
        place_in_lane_X = pieces_number - np.searchsorted(pieces.lane_X, pieces.lane_X)
        begins_X = place_in_lane_X % (self._wide or len(order)) == 0
        end_X = np.cumsum(pieces.size_X[order])
        return _Cycle(
            shard_X=pieces.shard_X[order],
            end_X=end_X,
            label_stop_X=pieces.label_stop_X[order],
            window_X=np.cumsum(begins_X) - 1,
            window_end_W=end_X[np.append(begins_X[1:], True)],
        )

    def _deal(self, epoch: int) -> "_Pieces":
        """Assign shards to lanes. This lasts an epoch, so that a large enough cache fetches each shard once."""
        shards = len(self._shard_N)
        order_N = permutation(shards, Stream.LANES, self._seed, epoch, 0) if self._lanes > 1 else np.arange(shards)
        end_N = np.cumsum(np.diff(self._bounds)[order_N])
        end_X = np.union1d(end_N, self._lane_start[1:])
        of_X = np.searchsorted(end_N, end_X)
        return _Pieces(
            shard_X=self._shard_N[order_N][of_X],
            size_X=np.diff(end_X, prepend=0),
            label_stop_X=self._bounds[1:][order_N][of_X] - (end_N[of_X] - end_X),
            lane_X=np.searchsorted(self._lane_start, end_X) - 1,
        )


class _Pieces(NamedTuple):
    """An epoch's pieces of shards, lane by lane: number of identities (`size_X`) and the label after the last one."""

    shard_X: np.ndarray
    size_X: np.ndarray
    label_stop_X: np.ndarray
    lane_X: np.ndarray


class _Cycle(NamedTuple):
    """A cycle's pieces of shards, lane by lane and window by window, and the ends of the pieces and windows."""

    shard_X: np.ndarray
    end_X: np.ndarray
    label_stop_X: np.ndarray
    window_X: np.ndarray
    window_end_W: np.ndarray

    def shards_of(self, first_L: np.ndarray, last_L: np.ndarray) -> np.ndarray:
        """The shards of each lane's windows from the first to the last, possibly with repetitions."""
        edges = np.zeros(len(self.window_end_W) + 1, dtype=np.int64)
        np.add.at(edges, first_L, 1)
        np.add.at(edges, last_L + 1, -1)
        return self.shard_X[np.cumsum(edges)[self.window_X] > 0]
