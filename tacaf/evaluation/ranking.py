"""The scoring core: distances, and the rank of every match in every query's list, without building the lists.

Q queries, G gallery images, P different gallery pids, K matches of one query, D feature width.

Two observations make it fast. The rank of a match is one more than the number of eligible gallery images that are
nearer, so it suffices to sort the *values* of a row and to search the few matches in it, instead of sorting indices.
And the rank of a pid in a list where each pid counts once is one more than the number of pids whose nearest image is
nearer than the query's nearest match. Equal distances would make both wrong, so rows in which a match has an equal are
detected and ranked again by a stable sort in gallery order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from tacaf.vocabulary import InputError

Metric = Literal["cosine", "euclidean"]
METRICS: tuple[Metric, ...] = get_args(Metric)
RANKS = (1, 5, 10, 20)
MEASURES = (*(f"rank{k}" for k in RANKS), "mAP", "mINP")
HEADLINE = ("rank1", "mAP", "mINP")  # the measures that are shown if there is no room for all
_CHUNK_ELEMENTS = 1 << 19  # distances in memory at a time: 4 MiB of float64, which nearly fit into a core's cache

Multiply = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Ranks(NamedTuple):
    """The results of the ranked lists. A query without an eligible match has 0 everywhere except in eligible_Q."""

    first_Q: np.ndarray  # int64, rank of the first match, from 1; of its pid if each pid counts once
    average_precision_Q: np.ndarray  # float64, mean_j(j / rank_j)
    inverse_penalty_Q: np.ndarray  # float64, matches / rank of the last match (AGW); its mean is mINP
    matches_Q: np.ndarray  # int64, eligible gallery images of the query's pid
    eligible_Q: np.ndarray  # int64, gallery images that are not excluded


def normalise(features_ND: np.ndarray, metric: str) -> np.ndarray:
    """Features ready for `distances`: unit rows for cosine (a zero row stays zero, so its distances are 1).

    float64 stays float64. Smaller types become float32 for cosine, and float64 for euclidean, because
    |x|^2 + |y|^2 - 2<x,y> cancels nearly all digits of float32 if x is near y.
    """
    if metric not in METRICS:
        raise InputError(f"expected metric {' or '.join(METRICS)}, got {metric!r}; choose one of them")
    single = metric == "cosine" and features_ND.dtype != np.float64
    features_ND = features_ND.astype(np.float32 if single else np.float64)
    norm_N = np.sqrt(np.einsum("nd,nd->n", features_ND, features_ND))
    if not np.isfinite(norm_N).all():
        raise InputError(
            "expected features whose squares fit the number type, got an overflow; scale the features down"
        )
    return features_ND / np.maximum(norm_N, 1e-12)[:, None] if metric == "cosine" else features_ND


def distances(
    query_QD: np.ndarray, gallery_GD: np.ndarray, metric: str, multiply: Multiply | None = None
) -> np.ndarray:
    """distance_QG between features from `normalise`; smaller is closer.

    cosine: 1 - cosine similarity, 0..2. euclidean: the length of the difference. multiply: computes query_QD times the
    transpose of gallery_GD in place of numpy.
    """
    product_QG = query_QD @ gallery_GD.T if multiply is None else multiply(query_QD, gallery_GD)
    if metric == "cosine":
        return np.subtract(1, product_QG, out=product_QG)
    product_QG *= -2
    product_QG += np.einsum("qd,qd->q", query_QD, query_QD)[:, None]
    product_QG += np.einsum("gd,gd->g", gallery_GD, gallery_GD)
    np.maximum(product_QG, 0, out=product_QG)
    return np.sqrt(product_QG, out=product_QG)


@dataclass(frozen=True, kw_only=True)
class RankTask:
    """What is ranked and how, apart from the features. For the fields see `rank_distances`, for metric `normalise`."""

    query_pid: np.ndarray
    gallery_pid: np.ndarray
    metric: str
    unique_pids: bool
    exclusion: tuple[np.ndarray, np.ndarray] | None = None

    def rank(self, distance_qG: np.ndarray, rows: slice) -> Ranks:
        """The ranks of these queries, from their distances to the whole gallery."""
        keys = None if self.exclusion is None else (self.exclusion[0][rows], self.exclusion[1])
        return rank_distances(distance_qG, self.query_pid[rows], self.gallery_pid, self.unique_pids, keys)


def rank_features(query_QD: np.ndarray, gallery_GD: np.ndarray, task: RankTask) -> Ranks:
    """`rank_distances` of the features' distances, a chunk of queries at a time."""
    query_QD, gallery_GD = normalise(query_QD, task.metric), normalise(gallery_GD, task.metric)
    return join_ranks(
        [
            task.rank(distances(query_QD[rows], gallery_GD, task.metric), rows)
            for rows in _chunks(len(query_QD), len(gallery_GD))
        ]
    )


def rank_distances(
    distance_QG: np.ndarray,
    query_pid: np.ndarray,
    gallery_pid: np.ndarray,
    unique_pids: bool,
    exclusion: tuple[np.ndarray, np.ndarray] | None = None,
) -> Ranks:
    """The ranks of the matches in each query's list of eligible gallery images, nearest first.

    distance_QG: finite floats, smaller is closer, equal ones rank in gallery order. query_pid [Q], gallery_pid [G].
    exclusion: a key per query and per gallery image; a gallery image with the query's key is left out of its list.
    unique_pids: count each pid once for first_Q (SYSU-MM01's CMC); average precision is always per image.
    """
    order_G = np.argsort(gallery_pid, kind="stable")  # makes the images of a pid consecutive
    pid_G = gallery_pid[order_G]
    starts_P = np.flatnonzero(np.concatenate(([True], pid_G[1:] != pid_G[:-1])))
    parts = []
    for rows in _chunks(len(distance_QG), len(order_G)):
        part_QG = distance_QG[rows].take(order_G, axis=1)
        if exclusion is not None:
            part_QG[exclusion[0][rows, None] == exclusion[1][order_G]] = np.inf
        parts.append(_rank_chunk(part_QG, query_pid[rows], pid_G, starts_P, order_G, unique_pids))
    return join_ranks(parts)


def join_ranks(parts: Sequence[Ranks]) -> Ranks:
    """The ranks of consecutive queries as one."""
    return Ranks(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def measures(ranks: Ranks) -> dict[str, float]:
    """The means over the queries that have a match, as fractions: rank1 ... rank20, mAP, mINP.

    Raises InputError if no query has a match.
    """
    valid = ranks.matches_Q > 0
    if not valid.any():
        raise InputError(
            "expected queries whose pid is in the gallery, got none; check the pids and the direction, and whether the"
            " protocol or --exclude leaves out every match as an image of the query's own camera or place"
        )
    means = {f"rank{k}": float(np.mean(ranks.first_Q[valid] <= k)) for k in RANKS}
    means["mAP"] = float(np.mean(ranks.average_precision_Q[valid]))
    means["mINP"] = float(np.mean(ranks.inverse_penalty_Q[valid]))
    return means


def chance_rank1(ranks: Ranks) -> float:
    """The expected rank-1 of a random order: the mean over queries with a match of matches / eligible images."""
    valid = ranks.matches_Q > 0
    return float(np.mean(ranks.matches_Q[valid] / ranks.eligible_Q[valid]))


def _chunks(queries: int, gallery: int) -> list[slice]:
    size = max(1, _CHUNK_ELEMENTS // max(1, gallery))
    return [slice(i, i + size) for i in range(0, max(1, queries), size)]


def _rank_chunk(
    distance_QG: np.ndarray,
    query_pid: np.ndarray,
    pid_G: np.ndarray,
    starts_P: np.ndarray,
    order_G: np.ndarray,
    unique_pids: bool,
) -> Ranks:
    """Ranks for gallery columns grouped by pid, with excluded distances infinite; order_G: the gallery positions."""
    start_Q, stop_Q = np.searchsorted(pid_G, query_pid), np.searchsorted(pid_G, query_pid, side="right")
    near_QK = _match_distances(distance_QG, start_Q, stop_Q)
    matches_Q = np.count_nonzero(near_QK < np.inf, axis=1)
    eligible_Q = np.count_nonzero(distance_QG < np.inf, axis=1)
    rank_QK, tied_Q = _match_ranks(np.sort(distance_QG, axis=1), near_QK, matches_Q, eligible_Q)
    first_Q = rank_QK[:, 0]
    if unique_pids:
        first_Q, pid_tied_Q = _pid_places(distance_QG, starts_P, start_Q)
        tied_Q |= pid_tied_Q
    for q in np.flatnonzero(tied_Q & (matches_Q > 0)).tolist():
        rank_K, place = _stable_ranks(distance_QG[q], query_pid[q], pid_G, order_G)
        rank_QK[q, : len(rank_K)] = rank_K
        first_Q[q] = place if unique_pids else rank_K[0]
    return ranks_of_places(rank_QK, first_Q, matches_Q, eligible_Q)


def ranks_of_places(rank_QK: np.ndarray, first_Q: np.ndarray, matches_Q: np.ndarray, eligible_Q: np.ndarray) -> Ranks:
    """The `Ranks` from the ranks of the matches: rank_QK int64, ascending, of which the first matches_Q count."""
    ordinal_K = np.arange(1, rank_QK.shape[1] + 1)
    precision_QK = np.where(ordinal_K <= matches_Q[:, None], ordinal_K / rank_QK, 0)
    # Added one by one: numpy's sum would group them by K, which differs between chunks of queries.
    total_Q = np.cumsum(precision_QK, axis=1)[:, -1]
    at_least_one_Q = np.maximum(matches_Q, 1)
    last_Q = np.take_along_axis(rank_QK, at_least_one_Q[:, None] - 1, axis=1)[:, 0]
    return Ranks(first_Q * (matches_Q > 0), total_Q / at_least_one_Q, matches_Q / last_Q, matches_Q, eligible_Q)


def _match_distances(distance_QG: np.ndarray, start_Q: np.ndarray, stop_Q: np.ndarray) -> np.ndarray:
    """Q x K: the distances of columns start..stop of each row, ascending; infinity is padding or an excluded image."""
    widest = max(1, int((stop_Q - start_Q).max(initial=0)))
    column_QK = start_Q[:, None] + np.arange(widest)
    inside_QK = column_QK < stop_Q[:, None]
    near_QK = np.take_along_axis(distance_QG, np.minimum(column_QK, distance_QG.shape[1] - 1), axis=1)
    return np.sort(np.where(inside_QK, near_QK, np.inf), axis=1)


def _match_ranks(
    sorted_QG: np.ndarray, near_QK: np.ndarray, matches_Q: np.ndarray, eligible_Q: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Q x K: 1 + the number of smaller distances in the row; and which rows have a match with an equal distance."""
    rank_QK = np.ones(near_QK.shape, np.int64)
    for q, count in enumerate(matches_Q.tolist()):
        rank_QK[q, :count] += sorted_QG[q].searchsorted(near_QK[q, :count])
    following_QK = np.take_along_axis(sorted_QG, np.minimum(rank_QK, sorted_QG.shape[1] - 1), axis=1)
    tied_Q = np.any((following_QK == near_QK) & (near_QK < np.inf) & (rank_QK < eligible_Q[:, None]), axis=1)
    return rank_QK, tied_Q


def _pid_places(distance_QG: np.ndarray, starts_P: np.ndarray, start_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rank of each query's pid if each pid counts once, and whether another pid's nearest image is just as near.

    A query whose pid is not in the gallery gets a meaningless rank, which the caller ignores.
    """
    nearest_QP = np.minimum.reduceat(distance_QG, starts_P, axis=1)
    own = np.minimum(np.searchsorted(starts_P, start_Q), len(starts_P) - 1)
    own_Q1 = np.take_along_axis(nearest_QP, own[:, None], axis=1)
    return 1 + (nearest_QP < own_Q1).sum(axis=1), (nearest_QP == own_Q1).sum(axis=1) > 1


def _stable_ranks(distance_G: np.ndarray, pid: int, pid_G: np.ndarray, order_G: np.ndarray) -> tuple[np.ndarray, int]:
    """The definition, for one query: sort by distance, then gallery order. Returns ranks of matches and of the pid."""
    ranked = np.lexsort((order_G, distance_G))
    ranked = ranked[np.isfinite(distance_G[ranked])]
    rank_K = np.flatnonzero(pid_G[ranked] == pid) + 1
    return rank_K, np.unique(pid_G[ranked[: rank_K[0]]]).size
