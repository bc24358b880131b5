"""Choosing the queries that a report shows and their nearest images, as rows of a trial, before images are read."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tacaf.draws import Stream, permutation
from tacaf.evaluation.ranking import Ranks, distances, normalise
from tacaf.evaluation.trials import Trial

DRAWN = "drawn by the seed, whatever their result"
BEST = "with the highest average precision, each of another identity"
WORST = "with the lowest average precision, each of another identity"


class Choice(NamedTuple):
    """A ranked list before its images are read: rows of the trial's feature set."""

    query: int
    average_precision: float
    matches: list[tuple[int, float]]  # row, distance


class PairChoice(NamedTuple):
    """A query, its nearest true match, and the nearest image of another identity (None if there is no other)."""

    query: int
    right: int
    wrong: int | None


class Neighbours:
    """The ranked lists of a trial's queries; the gallery is normalised once."""

    def __init__(self, trial: Trial, metric: str) -> None:
        self.trial, self.metric = trial, metric
        self._gallery_GD = normalise(trial.features.features[trial.gallery_rows], metric)

    def ordered(self, place: int) -> list[tuple[int, float]]:
        """(row, distance) of every eligible gallery image of a query, nearest first, equal ones in gallery order."""
        trial = self.trial
        query_1D = normalise(trial.features.features[[trial.query_rows[place]]], self.metric)
        distance_G = distances(query_1D, self._gallery_GD, self.metric)[0]
        order = np.argsort(distance_G, kind="stable")
        if trial.exclusion is not None:
            order = order[trial.exclusion[1][order] != trial.exclusion[0][place]]
        return list(zip(trial.gallery_rows[order].tolist(), distance_G[order].tolist(), strict=True))


def choose_queries(trial: Trial, ranks: Ranks, n: int, seed: int) -> dict[str, list[int]]:
    """Kind of choice -> positions in the trial's queries.

    `n` queries are drawn by the seed whatever their result, and half as many have the highest and the lowest average
    precision, each of another identity. Only queries with a match are chosen; if there are fewer, so are the choices.
    Equal precisions are in the seed's order.
    """
    shuffled = permutation(len(trial.query_rows), Stream.RANKED_LISTS, seed, 0, 0)
    shuffled = shuffled[ranks.matches_Q[shuffled] > 0]
    precision = ranks.average_precision_Q[shuffled]
    pids = trial.features.pid[trial.query_rows]
    return {
        DRAWN: shuffled[:n].tolist(),
        BEST: _one_each(shuffled[np.argsort(-precision, kind="stable")], pids, (n + 1) // 2),
        WORST: _one_each(shuffled[np.argsort(precision, kind="stable")], pids, (n + 1) // 2),
    }


def choose_ranked_lists(
    trial: Trial, ranks: Ranks, metric: str, n: int, shown: int, seed: int
) -> dict[str, list[Choice]]:
    """Kind of choice -> ranked lists of `choose_queries`, each with its `shown` nearest eligible gallery images.

    `ranks` must be those of the trial and metric.
    """
    neighbours = Neighbours(trial, metric)
    return {
        kind: [
            Choice(
                int(trial.query_rows[place]),
                float(ranks.average_precision_Q[place]),
                neighbours.ordered(place)[:shown],
            )
            for place in places
        ]
        for kind, places in choose_queries(trial, ranks, n, seed).items()
    }


def choose_pairs(trial: Trial, ranks: Ranks, metric: str, n: int, seed: int) -> list[PairChoice]:
    """The first `n` queries drawn by the seed, each with its nearest true match and the nearest wrong one."""
    neighbours, pid = Neighbours(trial, metric), trial.features.pid
    pairs = []
    for place in choose_queries(trial, ranks, n, seed)[DRAWN]:
        query = int(trial.query_rows[place])
        rows = [row for row, _ in neighbours.ordered(place)]
        right = next(row for row in rows if pid[row] == pid[query])
        pairs.append(PairChoice(query, right, next((row for row in rows if pid[row] != pid[query]), None)))
    return pairs


def _one_each(places: np.ndarray, pids: np.ndarray, n: int) -> list[int]:
    """The first `n` positions with different identities."""
    _, first = np.unique(pids[places], return_index=True)
    chosen: Sequence[int] = places[np.sort(first)].tolist()
    return list(chosen[:n])
