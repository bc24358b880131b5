"""Ranks for a gallery too large for memory: features are read tile by tile, and ranks are counted instead of sorted.

Q queries, G gallery images, K matches of one query, D feature width; q and g are tiles of them.

The rank of a match is one more than the number of eligible images before it: nearer, or equally near and earlier in the
gallery. To count these, the distances of the matches must be known first, and to be comparable they must come from the
same product as all others. Both sides are therefore sorted by pid: the matches are then in few of the tiles, which are
multiplied twice, the first time only for the matches. Nearly all images of a tile are farther than the last match of
their query and are dropped by one comparison, so that counting costs little compared with the product.
"""

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from tacaf.evaluation.features import read_rows
from tacaf.evaluation.ranking import Ranks, RankTask, distances, normalise, ranks_of_places
from tacaf.vocabulary import InputError

TILE = (512, 16_384)  # queries and gallery images of a product: 32 MiB of float32
STRIP = 32  # queries of a tile whose distances are examined at a time; they fit into a core's cache


class _Matches(NamedTuple):
    """The eligible matches of each query, nearest first, equal ones in gallery order, padded with infinity."""

    distance_QK: np.ndarray
    position_QK: np.ndarray  # int64, position in the gallery
    count_Q: np.ndarray  # int64

    @property
    def limit_Q(self) -> np.ndarray:
        """The distance of the last match; minus infinity if there is none."""
        last_Q = np.take_along_axis(self.distance_QK, np.maximum(self.count_Q, 1)[:, None] - 1, axis=1)[:, 0]
        return np.where(self.count_Q > 0, last_Q, -np.inf).astype(self.distance_QK.dtype)


class _Hits(NamedTuple):
    """Pairs of a tile that are not farther than the query's last match, by query, then by column."""

    query: np.ndarray  # int64, position among the sorted queries
    column: np.ndarray  # int64, position among the sorted gallery images
    distance: np.ndarray


class _Side(NamedTuple):
    """Queries or gallery, sorted by pid."""

    order: np.ndarray  # int64, positions before sorting
    pid: np.ndarray
    key: np.ndarray | None  # of the exclusion

    @classmethod
    def by_pid(cls, pid: np.ndarray, key: np.ndarray | None) -> "_Side":
        order = np.argsort(pid, kind="stable")
        return cls(order, pid[order], None if key is None else key[order])


def rank_streamed(
    query_QD: np.ndarray,
    stored_ND: np.ndarray,
    gallery_rows: np.ndarray,
    task: RankTask,
    device: str = "cpu",
) -> Ranks:
    """The result of `rank_features` for the gallery `stored_ND[gallery_rows]`, with one tile of it in memory at a time.

    stored_ND: usually a numpy.memmap; rows in the order of pids are read in one operation. gallery_rows int64 [G]: the
    gallery's order, which decides between equal distances. device: cpu, or cuda for the products. Distances come from
    the product of a tile, so the order of two images whose distances differ only by rounding may differ from that of
    another product.
    """
    queries, gallery = (
        _Side.by_pid(pid, None if task.exclusion is None else task.exclusion[side])
        for side, pid in enumerate((task.query_pid, task.gallery_pid))
    )
    tiles = _Tiles(query_QD[queries.order], stored_ND, gallery_rows[gallery.order], task.metric, device)
    matches = _find_matches(tiles, queries, gallery)
    before_QK, pids_before_Q = _count(tiles, queries, gallery, matches, task.unique_pids)
    place_QK = before_QK + np.arange(1, matches.distance_QK.shape[1] + 1)
    first_Q = pids_before_Q + 1 if task.unique_pids else place_QK[:, 0]
    ranks = ranks_of_places(place_QK, first_Q, matches.count_Q, _eligible_counts(queries, gallery))
    back = np.argsort(queries.order)
    return Ranks(*(column[back] for column in ranks))


def _count(
    tiles: "_Tiles", queries: _Side, gallery: _Side, matches: _Matches, unique_pids: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The second pass: how many other images rank before each match, int64 [Q, K], and with `unique_pids` how many
    other pids rank before the first match, int64 [Q].
    """
    before_QK = np.zeros_like(matches.position_QK)
    pids_before_Q, last_pid_Q = np.zeros_like(matches.count_Q), np.full_like(matches.count_Q, -1)
    pid_number_G = np.cumsum(np.diff(gallery.pid, prepend=gallery.pid[:1]) != 0)
    limit_Q = matches.limit_Q

    def count(begin: int, distance_qg: np.ndarray, column: int) -> None:
        hits = _eligible(_near(begin, distance_qg, column, limit_Q), queries, gallery)
        position = gallery.order[hits.column]
        _count_before(hits, position, matches, before_QK)
        if unique_pids:
            _count_pids(hits, position, pid_number_G[hits.column], matches, pids_before_Q, last_pid_Q)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for rows, columns in tiles.all():
            distance_qg = tiles.distances(rows, columns)
            starts = range(0, len(distance_qg), STRIP)  # two threads never count for the same query
            parts = [(rows.start + a, distance_qg[a : a + STRIP], columns.start) for a in starts]
            list(pool.map(count, *zip(*parts, strict=True)))
    return before_QK, pids_before_Q


def _near(begin: int, distance_qg: np.ndarray, column: int, limit_Q: np.ndarray) -> _Hits:
    """The pairs within their query's limit, of a strip that begins at this query and column."""
    flat = np.flatnonzero(distance_qg <= limit_Q[begin : begin + len(distance_qg), None])
    query, within = np.divmod(flat, distance_qg.shape[1])
    return _Hits(query + begin, within + column, distance_qg.ravel()[flat])


class _Tiles:
    """The distances of sorted queries to sorted gallery images, tile by tile. A tile has the same bits every time."""

    def __init__(
        self, query_QD: np.ndarray, stored_ND: np.ndarray, rows_G: np.ndarray, metric: str, device: str
    ) -> None:
        if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
            raise InputError(f"expected device cpu, or cuda on a machine that has one, got {device!r}; use cpu")
        self.query_QD, self.stored_ND, self.rows_G = normalise(query_QD, metric), stored_ND, rows_G
        self.metric, self.device = metric, device
        self._held: tuple[slice, np.ndarray] | None = None  # the gallery tile read last
        self._product_qg = np.empty((0, 0), self.query_QD.dtype)

    def all(self) -> Iterator[tuple[slice, slice]]:
        """Every tile, with gallery tiles in the outer loop, so that each is read once."""
        for column in range(0, len(self.rows_G), TILE[1]):
            for row in range(0, len(self.query_QD), TILE[0]):
                yield (
                    slice(row, min(row + TILE[0], len(self.query_QD))),
                    slice(column, min(column + TILE[1], len(self.rows_G))),
                )

    def distances(self, rows: slice, columns: slice) -> np.ndarray:
        """distance_qg of one tile; the next call may overwrite it."""
        if self._held is None or self._held[0] != columns:
            self._held = (columns, normalise(read_rows(self.stored_ND, self.rows_G[columns]), self.metric))
        return distances(self.query_QD[rows], self._held[1], self.metric, self._multiply)

    def _multiply(self, query_qD: np.ndarray, gallery_gD: np.ndarray) -> np.ndarray:
        """The product. On the CPU it reuses memory, because allocating it costs a tenth of a product."""
        if self.device == "cpu":
            shape = (len(query_qD), len(gallery_gD))
            if self._product_qg.shape != shape:
                self._product_qg = np.empty(shape, query_qD.dtype)
            return np.matmul(query_qD, gallery_gD.T, out=self._product_qg)
        sides = [torch.from_numpy(side).to(self.device) for side in (query_qD, gallery_gD)]
        return torch.mm(sides[0], sides[1].T).cpu().numpy()


def _find_matches(tiles: _Tiles, queries: _Side, gallery: _Side) -> _Matches:
    """The first pass, over only the tiles that contain matches."""
    start_Q, stop_Q = (np.searchsorted(gallery.pid, queries.pid, side=side) for side in ("left", "right"))
    widest = max(1, int((stop_Q - start_Q).max(initial=0)))
    column_QK = start_Q[:, None] + np.arange(widest)
    distance_QK = np.full(column_QK.shape, np.inf, tiles.query_QD.dtype)
    for rows, columns in tiles.all():
        if start_Q[rows.start] >= columns.stop or stop_Q[rows.stop - 1] <= columns.start:
            continue
        own_qK = (column_QK[rows] >= columns.start) & (column_QK[rows] < np.minimum(stop_Q[rows, None], columns.stop))
        if own_qK.any():
            query, k = np.nonzero(own_qK)
            tile_qg = tiles.distances(rows, columns)
            distance_QK[query + rows.start, k] = tile_qg[query, column_QK[query + rows.start, k] - columns.start]
    column_QK = np.minimum(column_QK, len(gallery.pid) - 1)
    if queries.key is not None and gallery.key is not None:
        distance_QK[queries.key[:, None] == gallery.key[column_QK]] = np.inf
    ranked_QK = np.argsort(distance_QK, axis=1, kind="stable")  # the images of a pid are in gallery order
    distance_QK = np.take_along_axis(distance_QK, ranked_QK, axis=1)
    position_QK = np.take_along_axis(gallery.order[column_QK], ranked_QK, axis=1)
    return _Matches(distance_QK, position_QK, np.count_nonzero(distance_QK < np.inf, axis=1))


def _eligible(hits: _Hits, queries: _Side, gallery: _Side) -> _Hits:
    """The hits that are neither matches nor excluded."""
    kept = queries.pid[hits.query] != gallery.pid[hits.column]
    if queries.key is not None and gallery.key is not None:
        kept &= queries.key[hits.query] != gallery.key[hits.column]
    return _Hits(*(column[kept] for column in hits))


def _count_before(hits: _Hits, position: np.ndarray, matches: _Matches, before_QK: np.ndarray) -> None:
    """Add to before_QK the number of hits that rank before each match."""
    bounds = np.flatnonzero(np.diff(hits.query, prepend=-1, append=-1))
    for a, b in itertools.pairwise(bounds.tolist()):
        q = hits.query[a]
        near_K = matches.distance_QK[q, : matches.count_Q[q]]
        ranked = np.sort(hits.distance[a:b])
        before_K = ranked.searchsorted(near_K)
        for k in np.flatnonzero(ranked.searchsorted(near_K, side="right") > before_K).tolist():
            equal = hits.distance[a:b] == near_K[k]
            before_K[k] += np.count_nonzero(position[a:b][equal] < matches.position_QK[q, k])
        before_QK[q, : len(near_K)] += before_K


def _count_pids(
    hits: _Hits,
    position: np.ndarray,
    pid_number: np.ndarray,
    matches: _Matches,
    pids_before_Q: np.ndarray,
    last_pid_Q: np.ndarray,
) -> None:
    """Add to pids_before_Q the number of pids with a hit before the first match.

    Tiles are in the order of pids, so only the pid that was counted last, last_pid_Q, may have been counted already.
    """
    first, first_position = matches.distance_QK[hits.query, 0], matches.position_QK[hits.query, 0]
    before = (hits.distance < first) | ((hits.distance == first) & (position < first_position))
    query, pid = hits.query[before], pid_number[before]
    begins = np.diff(query, prepend=-1) != 0
    previous = np.where(begins, last_pid_Q[query], np.concatenate(([-1], pid[:-1])))
    np.add.at(pids_before_Q, query[pid != previous], 1)
    last_pid_Q[query] = pid  # assigned in order, so each query keeps its last pid


def _eligible_counts(queries: _Side, gallery: _Side) -> np.ndarray:
    """eligible_Q: the number of gallery images whose key differs from the query's."""
    whole = np.full(len(queries.pid), len(gallery.pid))
    if queries.key is None or gallery.key is None:
        return whole
    keys = np.sort(gallery.key)
    return whole - (np.searchsorted(keys, queries.key, side="right") - np.searchsorted(keys, queries.key))
