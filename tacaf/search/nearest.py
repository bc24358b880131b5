"""Finding the k nearest gallery images of each query: blockwise in NumPy, or with FAISS for large galleries.

Q queries, G gallery images, D feature width. Rows have length 1; the distance is 1 - cosine similarity, 0..2, rounded
to six decimals, so that equal descriptors have equal distances whatever the order of summation. Images at equal
distances rank in gallery order. Source: ours.
"""

import importlib.util
from typing import Literal

import numpy as np

from tacaf.extras import missing

Engine = Literal["auto", "exact", "faiss"]
FAISS_FROM = 100_000  # gallery images from which `auto` uses FAISS if it is installed
DECIMALS = 6
_BLOCK = (256, 16_384)  # queries x gallery images at a time: 16 MiB of distances


def choose_engine(engine: Engine, gallery: int) -> Literal["exact", "faiss"]:
    """The engine for a gallery of this size. Raises InputError if `engine` is "faiss" and FAISS is not installed."""
    installed = importlib.util.find_spec("faiss") is not None
    if engine == "faiss" and not installed:
        raise missing("faiss", "--engine faiss")
    if engine == "auto":
        return "faiss" if installed and gallery >= FAISS_FROM else "exact"
    return engine


def nearest(
    query_QD: np.ndarray, gallery_GD: np.ndarray, k: int, engine: Engine = "auto"
) -> tuple[np.ndarray, np.ndarray]:
    """(rows int64 [Q, k], distances float32 [Q, k]) of the nearest gallery rows, nearest first; k is at most G.

    Both engines compare every pair. FAISS keeps k images before equal distances are put in gallery order, so among
    images at the largest distance it may return others.
    """
    k = min(k, len(gallery_GD))
    if choose_engine(engine, len(gallery_GD)) == "faiss":
        return _by_faiss(query_QD, gallery_GD, k)
    blocks = [_exact(query_QD[q : q + _BLOCK[0]], gallery_GD, k) for q in range(0, len(query_QD), _BLOCK[0])]
    if not blocks:
        return np.empty((0, k), np.int64), np.empty((0, k), np.float32)
    rows, distances = zip(*blocks, strict=True)
    return np.concatenate(rows), np.concatenate(distances)


def _exact(query_QD: np.ndarray, gallery_GD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest, updated block by block of the gallery. Earlier images come first, so equals keep their order."""
    row_QK = np.empty((len(query_QD), 0), np.int64)
    distance_QK = np.empty((len(query_QD), 0), np.float32)
    for start in range(0, len(gallery_GD), _BLOCK[1]):
        block_GD = gallery_GD[start : start + _BLOCK[1]]
        new_QG = np.round(1 - query_QD @ block_GD.T, DECIMALS)
        row_QG = np.broadcast_to(np.arange(start, start + len(block_GD)), new_QG.shape)
        distance_QK, row_QK = _keep(np.hstack([distance_QK, new_QG]), np.hstack([row_QK, row_QG]), k)
    return row_QK, distance_QK


def _keep(distance_QN: np.ndarray, row_QN: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k smallest of each row in order; equal ones keep theirs."""
    k = min(k, distance_QN.shape[1])
    last_Q = np.partition(distance_QN, k - 1, axis=1)[:, k - 1]
    kept = np.empty((len(distance_QN), k), np.int64)
    for q, (distance_N, last) in enumerate(zip(distance_QN, last_Q, strict=True)):
        near = np.flatnonzero(distance_N <= last)  # includes all ties at the end, among which the order decides
        kept[q] = near[np.argsort(distance_N[near], kind="stable")[:k]]
    return np.take_along_axis(distance_QN, kept, axis=1), np.take_along_axis(row_QN, kept, axis=1)


def _by_faiss(query_QD: np.ndarray, gallery_GD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    import faiss

    index = faiss.IndexFlatIP(gallery_GD.shape[1])
    index.add(np.ascontiguousarray(gallery_GD, np.float32))
    similarity_QK, row_QK = index.search(np.ascontiguousarray(query_QD, np.float32), k)
    distance_QK = np.round(1 - similarity_QK, DECIMALS)
    order_QK = np.lexsort((row_QK, distance_QK), axis=1)
    return np.take_along_axis(row_QK, order_QK, axis=1), np.take_along_axis(distance_QK, order_QK, axis=1)
