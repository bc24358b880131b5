"""k-reciprocal re-ranking (Zhong, Zheng, Cao, Li: Re-ranking Person Re-identification, CVPR 2017), with sparse sets.

N images of a trial: its Q queries, then its G gallery images, both in the trial's order. D feature width.

    d(i, j)   squared length of the difference (of unit features under cosine), divided by the largest d of row i
    N(i, k)   image i itself and the k nearest others, equally near ones in the order of the images; all if N <= k
    R(i, k)   the j in N(i, k) with i in N(j, k)
    R*(i)     R(i, k1), and all of R(j, k1/2) for each j in R(i, k1) if more than two thirds of it are in R(i, k1)
    V(i, j)   exp(-d(i, j)) for j in R*(i), else 0; divided by the sum of its row
    V'(i)     mean of V over the first k2 of N(i, .), of which i itself is the first
    J(i, j)   1 - s / (2 - s) with s = sum over n of min(V'(i, n), V'(j, n))
    result    (1 - lambda) J(q, g) + lambda d(q, g)

k1/2 is rounded to the nearest whole number, halves to even, as in the authors' program. Neighbourhoods include every
image of the trial, even those that the protocol leaves out of a query's list, because they do not belong to one query.
These images are left out of the list at the end, as without re-ranking.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
from typing_extensions import TypedDict

from tacaf.evaluation.ranking import Ranks, RankTask, distances, join_ranks, normalise
from tacaf.vocabulary import InputError

MOST_IMAGES = 200_000
_MATRIX_ELEMENTS = 1 << 26  # distances that are kept, 256 MiB of float32; if there are more, they are computed twice
_CHUNK_ELEMENTS = 1 << 20  # distances, or pairs of them, that are processed at a time


# The three numbers as a result records them.
Reranking = TypedDict("Reranking", {"k1": int, "k2": int, "lambda": float})


@dataclass(frozen=True)
class Rerank:
    """The three numbers of the method; the defaults are the authors'."""

    k1: int = 20
    k2: int = 6
    weight: float = 0.3  # lambda

    @classmethod
    def of(cls, words: Sequence[str | float]) -> "Rerank":
        """From K1 K2 LAMBDA, or the defaults if `words` is empty. Raises InputError for wrong numbers."""
        if not words:
            return cls()
        try:
            k1, k2, weight = (float(word) for word in words)
            rerank = cls(int(k1), int(k2), weight)
            fits = (rerank.k1, rerank.k2) == (k1, k2) and k1 >= 1 and k2 >= 1 and 0 <= weight <= 1
        except (ValueError, OverflowError):
            fits = False
        if not fits:
            raise InputError(
                "expected nothing or K1 K2 LAMBDA for re-ranking (whole numbers from 1, lambda from 0 to 1; 20 6 0.3), "
                f"got {' '.join(map(str, words))}; change them"
            )
        return rerank

    @property
    def facts(self) -> Reranking:
        """The three numbers as a result records them."""
        return {"k1": self.k1, "k2": self.k2, "lambda": self.weight}


class Distances:
    """d(i, j) of N images before the division: kept as a matrix, or computed on demand."""

    def __init__(self, features_ND: np.ndarray, metric: str, matrix_NN: np.ndarray | None = None) -> None:
        self.features_ND, self.metric, self.matrix_NN = features_ND, metric, matrix_NN

    @classmethod
    def of(cls, features_ND: np.ndarray, metric: str) -> "Distances":
        """The distances of raw features, kept in memory if they are few enough."""
        computed = cls(normalise(features_ND, metric), metric)
        if len(features_ND) ** 2 > _MATRIX_ELEMENTS:
            return computed
        return cls(computed.features_ND, metric, computed.rows(slice(None)))

    def __len__(self) -> int:
        return len(self.features_ND)

    def rows(self, rows: slice) -> np.ndarray:
        """The distances of these images to all, [n, N]. For unit rows, 1 - cosine is half of the squared length."""
        if self.matrix_NN is not None:
            return self.matrix_NN[rows]
        distance_nN = distances(self.features_ND[rows], self.features_ND, self.metric)
        return distance_nN if self.metric == "cosine" else np.square(distance_nN, out=distance_nN)

    def pairs(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """The distances of the pairs (row, column), float64."""
        if self.matrix_NN is not None:
            return self.matrix_NN[row, column].astype(np.float64)
        computed = np.empty(len(row))
        for part in _chunks(len(row), self.features_ND.shape[1]):
            first, second = self.features_ND[row[part]], self.features_ND[column[part]]
            if self.metric == "cosine":
                computed[part] = 1 - np.einsum("pd,pd->p", first, second)
            else:
                first = first - second
                computed[part] = np.einsum("pd,pd->p", first, first)
        return computed


def rank_reranked(query_QD: np.ndarray, gallery_GD: np.ndarray, task: RankTask, rerank: Rerank) -> Ranks:
    """Ranks by the re-ranked distances. Time grows with (Q + G)²; beyond _MATRIX_ELEMENTS, memory grows with Q + G.

    Raises InputError for more than MOST_IMAGES images.
    """
    images = len(query_QD) + len(gallery_GD)
    if images > MOST_IMAGES:
        raise InputError(
            f"expected at most {MOST_IMAGES:,} images for re-ranking, which compares all pairs, got {images:,}; "
            "leave it out, or score a smaller gallery"
        )
    original = Distances.of(np.concatenate([query_QD, gallery_GD]), task.metric)
    chunks = reranked(original, len(query_QD), rerank)
    return join_ranks([task.rank(distance_qG, rows) for rows, distance_qG in chunks])


def reranked(original: Distances, queries: int, rerank: Rerank) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield chunks of queries with their re-ranked distances to the whole gallery, float64 [q, G].

    original: the distances of the queries followed by the gallery.
    """
    nearest_NK, largest_N = _neighbours(original, max(rerank.k1 + 1, rerank.k2))
    encoding_NN = _encode(original, nearest_NK, largest_N, rerank)
    gallery_NG = encoding_NN[queries:].tocsc()
    for rows in _chunks(queries, len(original)):
        original_qG = original.rows(rows)[:, queries:] / largest_N[rows, None]
        yield rows, (1 - rerank.weight) * _jaccard(encoding_NN[rows], gallery_NG) + rerank.weight * original_qG


def _neighbours(original: Distances, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k of each image's list, itself first, int64 [N, k], and the largest distance of its row (1 if 0)."""
    images = len(original)
    k = min(k, images)
    nearest_NK, largest_N = np.empty((images, k), np.int64), np.empty(images)
    for rows in _chunks(images, images):
        distance_nN = original.rows(rows).copy()
        largest_N[rows] = distance_nN.max(axis=1)
        own = np.arange(len(distance_nN))
        distance_nN[own, own + rows.start] = -np.inf
        bound_n = np.partition(distance_nN, k - 1, axis=1)[:, k - 1]
        row, column = np.divmod(np.flatnonzero(distance_nN <= bound_n[:, None]), images)
        # k of each row, or more if the last one has an equal
        order = np.lexsort((column, distance_nN[row, column], row))
        starts_n = np.searchsorted(row, own)
        nearest_NK[rows] = column[order][starts_n[:, None] + np.arange(k)]
    return nearest_NK, np.where(largest_N > 0, largest_N, 1)


def _encode(original: Distances, nearest_NK: np.ndarray, largest_N: np.ndarray, rerank: Rerank) -> sparse.csr_array:
    """V', sparse float64 [N, N]."""
    near, half = _reciprocal(nearest_NK, rerank.k1), _reciprocal(nearest_NK, int(np.around(rerank.k1 / 2)))
    shared = (near @ half.T).multiply(near).tocoo()  # how many of R(j, k1/2) are in R(i, k1), for j in R(i, k1)
    taken = shared.data * 3 > 2 * half.sum(axis=1)[shared.col]
    chosen = sparse.csr_array((shared.data[taken], (shared.row[taken], shared.col[taken])), shape=near.shape)
    wide = (near + chosen @ half).tocoo()
    weight = np.exp(-original.pairs(wide.row, wide.col) / largest_N[wide.row])
    encoding = sparse.csr_array((weight, (wide.row, wide.col)), shape=near.shape)
    encoding = sparse.diags_array(1 / encoding.sum(axis=1)) @ encoding
    k2 = min(rerank.k2, nearest_NK.shape[1])
    return encoding if k2 == 1 else (_membership(nearest_NK[:, :k2]) @ encoding / k2).tocsr()


def _membership(chosen_NK: np.ndarray) -> sparse.csr_array:
    """float64 [N, N]: 1 at (i, j) if j is in row i of chosen_NK."""
    images, k = chosen_NK.shape
    return sparse.csr_array(
        (np.ones(images * k), chosen_NK.ravel(), np.arange(0, images * k + 1, k)), shape=(images, images)
    )


def _reciprocal(nearest_NK: np.ndarray, k: int) -> sparse.csr_array:
    """R(., k) as a matrix of 0 and 1."""
    within = _membership(nearest_NK[:, : k + 1])
    return within.multiply(within.T).tocsr()


def _jaccard(query_qN: sparse.csr_array, gallery_NG: sparse.csc_array) -> np.ndarray:
    """J of some queries and the whole gallery, float64 [q, G]. Only columns that both have add to the sum of minima."""
    queries, gallery = query_qN.shape[0], gallery_NG.shape[0]
    row_of = np.repeat(np.arange(queries), np.diff(query_qN.indptr))
    starts, lengths = gallery_NG.indptr[query_qN.indices], np.diff(gallery_NG.indptr)[query_qN.indices]
    shared = np.zeros(queries * gallery)
    for part in _pieces(lengths):
        count = lengths[part].astype(np.int64)
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        place = np.repeat(starts[part], count) + within
        least = np.minimum(np.repeat(query_qN.data[part], count), gallery_NG.data[place])
        pair = np.repeat(row_of[part], count) * gallery + gallery_NG.indices[place]
        shared += np.bincount(pair, least, minlength=len(shared))
    shared_qG = shared.reshape(queries, gallery)
    return 1 - shared_qG / (2 - shared_qG)


def _pieces(lengths: np.ndarray) -> Iterator[slice]:
    """Slices of about _CHUNK_ELEMENTS pairs each; the pairs of one entry are never divided."""
    piece_of = np.cumsum(lengths, dtype=np.int64) // _CHUNK_ELEMENTS
    bounds = [0, *(np.flatnonzero(np.diff(piece_of)) + 1).tolist(), len(lengths)]
    return (slice(a, b) for a, b in itertools.pairwise(bounds) if b > a)


def _chunks(rows: int, width: int) -> list[slice]:
    size = max(1, _CHUNK_ELEMENTS // max(1, width))
    return [slice(i, min(i + size, rows)) for i in range(0, rows, size)]
