"""Measures the speed of scoring and re-ranking against usual Python loops, and of a streamed gallery.

    python perf/bench_evaluation.py [--json perf/results/evaluation.json]
    python perf/bench_evaluation.py --streamed [--queries 10000] [--gallery 1000000] [--width 512] [--json ...]

Without --streamed the structure is SYSU-MM01's (96 pids, 3803 queries of cameras 3 and 6, gallery cameras 1, 2, 4, 5,
location rule, each pid once). The features are noise for the ranking, whose speed depends only on sizes, and noise
around a centre for each pid for the re-ranking. Both sides get the same distances, and nothing is printed unless they
give the same figures. Their runs are interleaved, and the shortest of each is reported. --streamed is described in
perf/parts/streamed_gallery.py. With --json, only the sections that were measured are replaced.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("perf.bench_evaluation")

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from perf.parts.streamed_gallery import StreamedCase, measure_streamed
from perf.parts.usual_scoring import usual_loop, usual_rerank
from tacaf.command import Parser, entry, to_path
from tacaf.datasets import SYSU_MM01, SYSU_MM01_QUERIES
from tacaf.documents import MOST_BYTES, load_json
from tacaf.evaluation.ranking import Ranks, distances, measures, normalise, rank_distances
from tacaf.evaluation.rerank import Distances, Rerank, reranked
from tacaf.files import read_bytes, shown, write_json
from tacaf.provenance import cpu_name, git_commit
from tacaf.vocabulary import InputError

QUERIES = SYSU_MM01_QUERIES
FEATURE_WIDTH = 2048
NOISE = 3.0  # of the re-ranking's features, in standard deviations of the pids' centres
STRUCTURE = "SYSU-MM01 all_search, location rule, each pid once"
GALLERY_PIDS = {1: 56, 2: 56, 4: 94, 5: 95}  # pids seen by each gallery camera, of 96
LOCATION = SYSU_MM01.locations
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def make_case(shots: int) -> dict[str, Any]:
    """Pids, location keys and float64 features of one trial with `shots` images per pid and camera."""
    rng = np.random.default_rng(shots)
    columns = [(pid, camera) for camera, pids in GALLERY_PIDS.items() for pid in range(pids) for _ in range(shots)]
    gallery = np.asarray(columns)
    return {
        "query_pid": rng.integers(0, 96, QUERIES),
        "gallery_pid": gallery[:, 0],
        "query_key": np.asarray([LOCATION[c] for c in rng.choice([3, 6], QUERIES)]),
        "gallery_key": np.asarray([LOCATION[c] for c in gallery[:, 1].tolist()]),
        "query": rng.standard_normal((QUERIES, FEATURE_WIDTH)),
        "gallery": rng.standard_normal((len(gallery), FEATURE_WIDTH)),
    }


def measure(shots: int, repeats: int) -> dict[str, Any]:
    """Times of one gallery size, in milliseconds; raises if the two scorings disagree."""
    case = make_case(shots)
    keys = (case["query_key"], case["gallery_key"])
    distance_ms, distance = _best(
        lambda: distances(normalise(case["query"], "cosine"), normalise(case["gallery"], "cosine"), "cosine"), repeats
    )

    def ours() -> Ranks:
        return rank_distances(distance, case["query_pid"], case["gallery_pid"], unique_pids=True, exclusion=keys)

    loop_ms, ours_ms = np.inf, np.inf
    for _ in range(repeats):
        once_ms, expected = _best(lambda: usual_loop(distance, case["query_pid"], case["gallery_pid"], *keys), 1)
        loop_ms = min(loop_ms, once_ms)
        once_ms, ranks = _best(ours, 1)
        ours_ms = min(ours_ms, once_ms)
    found = measures(ranks)
    for name, value in expected.items():
        if abs(found[name] - value) > 1e-12:
            raise SystemExit(f"error: expected {name} {value} (loop), got {found[name]}; no figure on a wrong result")
    return {
        "queries": QUERIES,
        "gallery": len(case["gallery_pid"]),
        "usual_loop_ms": round(loop_ms, 2),
        "ours_ms": round(ours_ms, 2),
        "ratio": round(loop_ms / ours_ms, 1),
        "distances_ms": round(distance_ms, 2),
        "ratio_with_distances": round((loop_ms + distance_ms) / (ours_ms + distance_ms), 1),
    }


def measure_rerank(shots: int, repeats: int) -> dict[str, Any]:
    """Times of re-ranking one trial, in milliseconds, from the same float32 distances; raises if the two disagree."""
    case, numbers = make_case(shots), Rerank()
    centres = np.random.default_rng(0).standard_normal((96, FEATURE_WIDTH))
    features = [centres[case[f"{side}_pid"]] + NOISE * case[side] for side in ("query", "gallery")]
    joined = np.concatenate(features).astype(np.float32)
    distance_ms, original = _best(lambda: Distances.of(joined, "cosine"), repeats)
    assert original.matrix_NN is not None

    def ours() -> np.ndarray:
        return np.concatenate([part for _, part in reranked(original, QUERIES, numbers)])

    loop_ms, ours_ms = np.inf, np.inf
    for _ in range(repeats):
        once_ms, _ = _best(lambda: usual_rerank(original.matrix_NN, QUERIES, numbers), 1)
        loop_ms = min(loop_ms, once_ms)
        once_ms, found = _best(ours, 1)
        ours_ms = min(ours_ms, once_ms)
    _refuse_difference(case, usual_rerank(original.matrix_NN, QUERIES, numbers, "stable"), found)
    return {
        "images": len(joined),
        "numbers": numbers.facts,
        "usual_loop_ms": round(loop_ms, 1),
        "ours_ms": round(ours_ms, 1),
        "ratio": round(loop_ms / ours_ms, 1),
        "distances_ms": round(distance_ms, 1),
    }


def _refuse_difference(case: dict[str, Any], expected: np.ndarray, found: np.ndarray) -> None:
    """Refuse to report figures if the re-rankings differ by more than float32 rounding."""
    apart = float(np.abs(expected - found).max())
    scores = [
        measures(
            rank_distances(one, case["query_pid"], case["gallery_pid"], True, (case["query_key"], case["gallery_key"]))
        )
        for one in (expected, found)
    ]
    if apart > 1e-5 or any(abs(scores[0][name] - scores[1][name]) > 1e-4 for name in scores[0]):
        raise SystemExit(f"error: expected the usual re-ranking's distances, got others by {apart}, scores {scores}")


def circumstances(repeats: int) -> dict[str, Any]:
    """The facts that the figures depend on."""
    return {
        "cpu": cpu_name(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "threads": {name: os.environ.get(name) for name in THREAD_VARIABLES},
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "commit": git_commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "repeats": repeats,
    }


def loops(repeats: int) -> dict[str, Any]:
    """The sections of the result for ranking and re-ranking."""
    facts = {**circumstances(repeats), "feature_width": FEATURE_WIDTH, "structure": STRUCTURE}
    rows = [measure(shots, repeats) for shots in (1, 10)]
    print("queries  gallery   usual loop ms   ours ms   ratio   distances ms   ratio with distances")
    for row in rows:
        print(
            f"{row['queries']:7d}  {row['gallery']:7d}  {row['usual_loop_ms']:14.1f}  {row['ours_ms']:8.1f}"
            f"  {row['ratio']:6.1f}  {row['distances_ms']:13.1f}  {row['ratio_with_distances']:21.1f}"
        )
    again = [measure_rerank(shots, repeats) for shots in (1, 10)]
    print("\nre-ranking: images   usual loop ms   ours ms   ratio   distances ms")
    for row in again:
        print(
            f"{row['images']:18d}  {row['usual_loop_ms']:14.1f}  {row['ours_ms']:8.1f}  {row['ratio']:6.1f}"
            f"  {row['distances_ms']:13.1f}"
        )
    return {
        "ranking": {"circumstances": {**facts, "dtype": "float64"}, "results": rows},
        "rerank": {"circumstances": {**facts, "dtype": "float32"}, "results": again},
    }


def streamed(case: StreamedCase) -> dict[str, Any]:
    """The section of the result for a streamed gallery; there is one per width."""
    facts = circumstances(1)
    found = measure_streamed(case)
    print("\n".join(f"{name}: {value}" for name, value in found.items()))
    return {f"streamed_{case.width}": {"circumstances": facts, "results": [found]}}


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=to_path)
    parser.add_argument("--streamed", action="store_true", help="measure a gallery on disk instead")
    for name, kind, value in StreamedCase.arguments():
        parser.add_argument(f"--{name}", type=kind, default=value, help="with --streamed")
    args = parser.parse_args(argv)
    case = StreamedCase(**{name: getattr(args, name) for name, _, _ in StreamedCase.arguments()})
    older = _older(args.json) if args.json is not None and args.json.exists() else {}
    sections = streamed(case) if args.streamed else loops(args.repeats)
    if args.json is not None:
        write_json(args.json, {**older, **sections})
    return 0


def _older(path: Path) -> dict[str, Any]:
    """The sections that the file already has, read before anything is measured.

    Raises InputError if it is not a file of this benchmark.
    """
    found = load_json(read_bytes(path, MOST_BYTES), shown(path), MOST_BYTES)
    if not isinstance(found, dict):
        raise InputError(f"{shown(path)}: expected sections of this benchmark, got something else; give another --json")
    return found


def _best(function: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """The shortest time of `repeats` runs, in milliseconds, and the result."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        result = function()
        times.append(1000 * (time.perf_counter() - began))
    return min(times), result
