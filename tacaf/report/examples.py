"""Choosing the queries that a report shows and their nearest images, as rows of a trial, before images are read."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from tacaf.draws import Stream, permutation
from tacaf.evaluation.ranking import Ranks, distances, normalise
from tacaf.evaluation.trials import Trial

PIECE = 16_384  # gallery images whose features are in memory at a time
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
    """The ranked lists of some queries of a trial. The gallery is read once, in pieces, for all of them."""

    def __init__(self, trial: Trial, metric: str, places: Iterable[int]) -> None:
        """places: the queries, as positions in the trial's query_rows."""
        self.trial = trial
        self._row_of = {place: row for row, place in enumerate(dict.fromkeys(places))}
        features, gallery = trial.features.features, trial.gallery_rows
        query_QD = normalise(features[trial.query_rows[list(self._row_of)]], metric)
        pieces = [
            distances(query_QD, normalise(features[gallery[start : start + PIECE]], metric), metric)
            for start in range(0, len(gallery), PIECE)
        ]
        self._distance_QG = np.concatenate(pieces, axis=1)

    def ordered(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and distances of a query's eligible gallery images, nearest first, equal ones in gallery order."""
        trial, distance_G = self.trial, self._distance_QG[self._row_of[place]]
        order = np.argsort(distance_G, kind="stable")
        if trial.exclusion is not None:
            order = order[trial.exclusion[1][order] != trial.exclusion[0][place]]
        return trial.gallery_rows[order], distance_G[order]


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
    chosen = choose_queries(trial, ranks, n, seed)
    neighbours = Neighbours(trial, metric, chain.from_iterable(chosen.values()))

    def choice(place: int) -> Choice:
        rows, distance = (part[:shown].tolist() for part in neighbours.ordered(place))
        precision = float(ranks.average_precision_Q[place])
        return Choice(int(trial.query_rows[place]), precision, list(zip(rows, distance, strict=True)))

    return {kind: [choice(place) for place in places] for kind, places in chosen.items()}


def choose_pairs(trial: Trial, ranks: Ranks, metric: str, n: int, seed: int) -> list[PairChoice]:
    """The first `n` queries drawn by the seed, each with its nearest true match and the nearest wrong one."""
    places, pid = choose_queries(trial, ranks, n, seed)[DRAWN], trial.features.pid
    neighbours = Neighbours(trial, metric, places)
    pairs = []
    for place in places:
        query, (rows, _) = int(trial.query_rows[place]), neighbours.ordered(place)
        same = pid[rows] == pid[query]
        wrong = rows[~same]
        pairs.append(PairChoice(query, int(rows[same][0]), int(wrong[0]) if len(wrong) else None))
    return pairs


def _one_each(places: np.ndarray, pids: np.ndarray, n: int) -> list[int]:
    """The first `n` positions with different identities."""
    _, first = np.unique(pids[places], return_index=True)
    chosen: Sequence[int] = places[np.sort(first)].tolist()
    return list(chosen[:n])
