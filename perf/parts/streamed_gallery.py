"""Scores a gallery on disk by streaming, and measures time against the matrix product alone, and peak memory.

bench_evaluation.py --streamed writes a temporary gallery, then starts this file as a process of its own, so that the
peak is that of scoring. The places of some queries are checked before any figure is reported. The product alone is the
same number of products of the same shape, of one tile in memory, into the same memory, before and after the scoring.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from tacaf.evaluation import rank_streamed as streaming
from tacaf.evaluation.rank_streamed import rank_streamed
from tacaf.evaluation.ranking import Ranks, RankTask, measures, normalise

IMAGES_PER_PID = 20
CHECKED = 8  # queries whose places are also counted from float64 distances
ROUNDING = 4e-6  # upper bound of the rounding of a float32 distance


@dataclass(frozen=True)
class StreamedCase:
    """The sizes of a case, and the width of the noise that is added to each pid's centre."""

    queries: int = 10_000
    gallery: int = 1_000_000
    width: int = 512
    noise: float = 2.2
    folder: str = tempfile.gettempdir()

    @classmethod
    def arguments(cls) -> list[tuple[str, Any, Any]]:
        return [(field.name, field.type, field.default) for field in fields(cls)]


def measure_streamed(case: StreamedCase) -> dict[str, Any]:
    """Seconds, MiB and the circumstances. Raises SystemExit if a place is wrong."""
    with tempfile.TemporaryDirectory(dir=case.folder) as name:
        folder = Path(name)
        _write(case, folder)
        subprocess.run([sys.executable, __file__, json.dumps(asdict(case)), name], check=True)
        found = json.loads((folder / "found.json").read_text())
        _refuse_wrong_places(folder)
    return found


def _features(case: StreamedCase, pid: np.ndarray, stream: int) -> np.ndarray:
    """Features float32 [n, width]; the centre depends only on the pid."""
    noise = np.random.default_rng([stream, int(pid[0]), len(pid)]).standard_normal((len(pid), case.width), np.float32)
    own, place = np.unique(pid, return_inverse=True)
    centres = np.stack([np.random.default_rng([0, one]).standard_normal(case.width, np.float32) for one in own])
    return centres[place] + np.float32(case.noise) * noise


def _write(case: StreamedCase, folder: Path) -> None:
    gallery_pid = np.arange(case.gallery) // IMAGES_PER_PID
    query_pid = np.random.default_rng(1).integers(0, gallery_pid[-1] + 1, case.queries)
    np.savez(folder / "queries.npz", pid=query_pid, features=_features(case, query_pid, 2), gallery_pid=gallery_pid)
    shape = (case.gallery, case.width)
    stored = np.lib.format.open_memmap(folder / "gallery.npy", "w+", np.float32, shape)
    for begin in range(0, case.gallery, 10_000):
        stored[begin : begin + 10_000] = _features(case, gallery_pid[begin : begin + 10_000], 3)
    stored.flush()


def _score(case: StreamedCase, folder: Path) -> None:
    """Score the gallery; runs in the process of its own."""
    with np.load(folder / "queries.npz") as archive:
        arrays = dict(archive)
    stored = np.load(folder / "gallery.npy", mmap_mode="r")
    before = _product_s(case, stored)
    began = time.perf_counter()
    task = RankTask(query_pid=arrays["pid"], gallery_pid=arrays["gallery_pid"], metric="cosine", unique_pids=False)
    ranks = rank_streamed(arrays["features"], stored, np.arange(case.gallery), task)
    whole = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    product = (before, _product_s(case, stored))
    found = {
        **asdict(case),
        "folder": None,
        "dtype": "float32",
        "gallery_file_gib": round(stored.nbytes / 2**30, 2),
        "scoring_s": round(whole, 2),
        "product_alone_s": [round(one, 2) for one in product],
        "ratio_to_product": round(whole / min(product), 2),
        "peak_resident_mib": round(peak),
        "scores": {name: round(value, 6) for name, value in measures(ranks).items()},
    }
    np.savez(folder / "ranks.npz", **ranks._asdict())
    (folder / "found.json").write_text(json.dumps(found))


def _product_s(case: StreamedCase, stored: np.ndarray) -> float:
    query_QD = np.array(stored[: min(case.queries, case.gallery)])
    gallery_gD = normalise(np.array(stored[: streaming.TILE[1]]), "cosine")
    tiles = [slice(a, a + streaming.TILE[0]) for a in range(0, len(query_QD), streaming.TILE[0])]
    products = [np.empty((len(query_QD[rows]), len(gallery_gD)), np.float32) for rows in (tiles[0], tiles[-1])]
    began = time.perf_counter()
    for _ in range(-(-case.gallery // streaming.TILE[1])):
        for rows in tiles:
            np.matmul(query_QD[rows], gallery_gD.T, out=products[rows is tiles[-1]])
    return time.perf_counter() - began


def _refuse_wrong_places(folder: Path) -> None:
    """Raises SystemExit if the first or last match of a query is not where float64 distances put it, up to rounding."""
    with np.load(folder / "queries.npz") as archive, np.load(folder / "ranks.npz") as found:
        arrays, ranks = dict(archive), Ranks(**found)
    stored = np.load(folder / "gallery.npy", mmap_mode="r")
    chosen = np.linspace(0, len(arrays["pid"]) - 1, min(CHECKED, len(arrays["pid"]))).astype(int)
    query_qD = normalise(arrays["features"][chosen].astype(np.float64), "cosine")
    parts = [slice(a, a + 20_000) for a in range(0, len(stored), 20_000)]
    distance_qG = np.concatenate(
        [1 - query_qD @ normalise(stored[part].astype(np.float64), "cosine").T for part in parts], axis=1
    )
    for q, distance_G in zip(chosen, distance_qG, strict=True):
        own_K = np.sort(distance_G[arrays["gallery_pid"] == arrays["pid"][q]])
        last = round(ranks.matches_Q[q] / ranks.inverse_penalty_Q[q])
        for place, distance in ((ranks.first_Q[q], own_K[0]), (last, own_K[-1])):
            nearer, not_farther = ((distance_G < distance + sign * ROUNDING).sum() for sign in (-1, 1))
            if not nearer < place <= not_farther:
                raise SystemExit(f"error: expected a place in {nearer + 1}..{not_farther}, got {place} (query {q})")


if __name__ == "__main__":
    _score(StreamedCase(**json.loads(sys.argv[1])), Path(sys.argv[2]))
