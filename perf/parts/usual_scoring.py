"""Scoring and re-ranking with the structure of usual public code, for comparison in perf/bench_evaluation.py."""

from typing import Literal

import numpy as np

from tacaf.evaluation.ranking import RANKS
from tacaf.evaluation.rerank import Rerank


def usual_loop(
    distance: np.ndarray, query_pid: np.ndarray, gallery_pid: np.ndarray, query_key: np.ndarray, gallery_key: np.ndarray
) -> dict[str, float]:
    """Scores by sorting all indices, and then by Python loops over queries and over their lists.

    The distinct pids of a list are gathered one by one for the CMC, and the precision after every gallery image is an
    element of a Python list. This structure is what the benchmark times.
    """
    order = np.argsort(distance, axis=1, kind="stable")
    pid_of_place = gallery_pid[order]
    hits = pid_of_place == query_pid[:, None]
    first, precisions, penalties = [], [], []
    for query in range(len(query_pid)):
        keep = gallery_key[order[query]] != query_key[query]
        pids = pid_of_place[query][keep]
        _, positions = np.unique(pids, return_index=True)
        unique_list = np.asarray([pids[position] for position in sorted(positions)])
        relevant = hits[query][keep].astype(np.int32)
        if not relevant.any():
            continue
        first.append(int(np.flatnonzero(unique_list == query_pid[query])[0]) + 1)
        places = np.flatnonzero(relevant) + 1
        penalties.append(float(len(places) / places[-1]))
        precision = [found / (place + 1.0) for place, found in enumerate(relevant.cumsum())]
        precisions.append(float((np.asarray(precision) * relevant).sum() / relevant.sum()))
    result = {f"rank{k}": float(np.mean([place <= k for place in first])) for k in RANKS}
    return {**result, "mAP": float(np.mean(precisions)), "mINP": float(np.mean(penalties))}


def usual_rerank(
    distance: np.ndarray, queries: int, numbers: Rerank, kind: Literal["quicksort", "stable"] = "quicksort"
) -> np.ndarray:
    """Re-ranked distances [Q, G], over dense N x N arrays and loops over images and their neighbours.

    distance: [N, N] squared distances of the queries, then the gallery images. kind: numpy's default sort leaves the
    order of equal distances undefined, `stable` keeps the order of the images.

    Every row is sorted completely, the encodings are in a dense float32 matrix, and the sum of minima is gathered by
    column for one query after another. This structure is what the benchmark times.
    """
    original = distance / distance.max(axis=1, keepdims=True)
    ranked = np.argsort(original, axis=1, kind=kind)
    encoding = np.zeros(original.shape, np.float32)
    for image in range(len(original)):
        wide = own = _reciprocal(ranked, image, numbers.k1)
        for candidate in own:
            others = _reciprocal(ranked, candidate, int(np.around(numbers.k1 / 2)))
            if len(np.intersect1d(others, own)) > 2 / 3 * len(others):
                wide = np.append(wide, others)
        wide = np.unique(wide)
        weight = np.exp(-original[image, wide])
        encoding[image, wide] = weight / weight.sum()
    if numbers.k2 > 1:
        encoding = np.stack([encoding[ranked[image, : numbers.k2]].mean(axis=0) for image in range(len(original))])
    holders = [np.flatnonzero(encoding[:, column]) for column in range(len(original))]
    jaccard = np.zeros((queries, len(original)), np.float32)
    for image in range(queries):
        shared = np.zeros(len(original), np.float32)
        for column in np.flatnonzero(encoding[image]):
            images = holders[column]
            shared[images] += np.minimum(encoding[image, column], encoding[images, column])
        jaccard[image] = 1 - shared / (2 - shared)
    final = (1 - numbers.weight) * jaccard + numbers.weight * original[:queries]
    return final[:, queries:]


def _reciprocal(ranked: np.ndarray, image: int, k: int) -> np.ndarray:
    forward = ranked[image, : k + 1]
    return forward[np.flatnonzero((ranked[forward, : k + 1] == image).any(axis=1))]
