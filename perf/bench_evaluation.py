"""Speed of scoring: the usual per-query Python loop against ranking.py, in one run, on one set of random features.

    python perf/bench_evaluation.py [--json perf/results/evaluation.json]

The structure is SYSU-MM01's (96 pids, 3803 queries of cameras 3 and 6, gallery cameras 1, 2, 4, 5, location rule, each
pid once); the features are noise, since only sizes matter to speed. Both get the same distances and must give the same
figures, or nothing is printed. The two take turns; the shortest of each one's repeats counts.
"""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tacaf.evaluation.ranking import RANKS, Ranks, distances, measures, normalise, rank_distances

QUERIES = 3803
FEATURE_WIDTH = 2048
GALLERY_PIDS = {1: 56, 2: 56, 4: 94, 5: 95}  # pids seen by each gallery camera, of 96
LOCATION = {1: 1, 2: 2, 3: 2, 4: 4, 5: 5, 6: 6}
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def usual_loop(
    distance: np.ndarray, query_pid: np.ndarray, gallery_pid: np.ndarray, query_key: np.ndarray, gallery_key: np.ndarray
) -> dict[str, float]:
    """Scoring as public VI-ReID code writes it: sort all indices, then Python loops over queries and over their lists.

    The pids of a list without repeats are gathered one by one for the CMC, and the precision after every gallery image
    is an element of a Python list. In our words; the structure is what is timed.
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


def circumstances(repeats: int) -> dict[str, Any]:
    """What the figures depend on."""
    root = Path(__file__).resolve().parent.parent
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return {
        "cpu": _cpu_model(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "threads": {name: os.environ.get(name) for name in THREAD_VARIABLES},
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "commit": git.stdout.strip() or None,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "repeats": repeats,
        "dtype": "float64",
        "feature_width": FEATURE_WIDTH,
        "structure": "SYSU-MM01 all_search, random features, location rule, each pid once",
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    facts = circumstances(args.repeats)
    rows = [measure(shots, args.repeats) for shots in (1, 10)]
    print("queries  gallery   usual loop ms   ours ms   ratio   distances ms   ratio with distances")
    for row in rows:
        print(
            f"{row['queries']:7d}  {row['gallery']:7d}  {row['usual_loop_ms']:14.1f}  {row['ours_ms']:8.1f}"
            f"  {row['ratio']:6.1f}  {row['distances_ms']:13.1f}  {row['ratio_with_distances']:21.1f}"
        )
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"circumstances": facts, "results": rows}, indent=1) + "\n")


def _best(function: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """The shortest of `repeats` runs in milliseconds, and the result."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        result = function()
        times.append(1000 * (time.perf_counter() - began))
    return min(times), result


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
