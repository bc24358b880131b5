"""Measures how hard the demo's set is for a colour histogram, the baseline network and TACAFNet, with one run each.

    python perf/checks/demo_difficulty.py --shards demo/shards [--run demo/run] [--json FILE]

The baseline is the same backbone, schedule and seed without channel augmentation, CMAAM and IPCAM. All are scored by
SYSU-MM01's all_search, single shot, literature draw, on the set's test identities. With one seed, this shows that the
set is neither solved by colour nor saturated, but not which method is better. `--run` takes TACAFNet's result from a
finished run.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("perf.checks.demo_difficulty")

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tacaf.checkout import ROOT
from tacaf.command import Parser, entry, to_path
from tacaf.data.index import ShardIndex
from tacaf.data.reader import ShardReader
from tacaf.evaluation.features import FeatureSet
from tacaf.evaluation.results import Result, read_result
from tacaf.evaluation.score import score
from tacaf.files import write_json
from tacaf.provenance import environment

RESULT = "results/sysu_mm01-all_search-1shot-literature.json"
BASELINE = ("model.cmaam.enabled=false", "model.ipcam.enabled=false", "data.plan.channel_augment=false")
STRIPES, BINS = 6, 6


def histogram(pixels: np.ndarray) -> np.ndarray:
    """Square roots of the joint RGB histograms of six stripes. Their cosine distance follows the Hellinger distance."""
    parts = []
    for stripe in np.array_split(pixels, STRIPES):
        counts, _ = np.histogramdd(stripe.reshape(-1, 3), bins=BINS, range=[(0, 256)] * 3)
        parts.append(np.sqrt(counts.ravel() / counts.sum()))
    return np.concatenate(parts).astype(np.float32)


def histogram_result(index: ShardIndex) -> Result:
    """The result with the histogram as the embedding."""
    rows, reader = index.rows_of(index.pids_of("test")), ShardReader(index)
    features = np.stack([histogram(reader.pixels(int(row))) for row in rows])
    columns = {name: np.asarray(index.columns[name][rows]) for name in ("pid", "camid", "modality", "number")}
    known = {"split": "test", "embedding": "colour histogram", "trained_on": "nothing"}
    return score(FeatureSet(features, **columns), "sysu_mm01", circumstances=known)


def trained_result(shards: Path, overrides: tuple[str, ...]) -> Result:
    """The result of a training with the demo's configuration and these overrides."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        values = (f"run={run}", f"data.shards={shards.resolve()}", "evaluation.every=0", *overrides)
        settings = [part for value in values for part in ("--set", value)]
        command = [sys.executable, "launch/train.py", "--config", "launch/configs/demo.yaml", *settings]
        subprocess.run(command, cwd=ROOT, check=True)
        return read_result(run / RESULT)


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=to_path, required=True)
    parser.add_argument("--run", type=to_path, help="a finished run of the demo's configuration on these shards")
    parser.add_argument("--json", type=to_path)
    args = parser.parse_args(argv)
    results = {
        "colour histogram": histogram_result(ShardIndex.open(args.shards)),
        "baseline": trained_result(args.shards, BASELINE),
        "TACAFNet": read_result(args.run / RESULT) if args.run else trained_result(args.shards, ()),
    }
    if args.json:
        values = {name: result.as_json() for name, result in results.items()}
        write_json(args.json, {"environment": environment(1), "results": values})
    for name, result in results.items():
        print(
            f"{name:17} rank-1 {100 * result.mean.rank1:5.2f} %  mAP {100 * result.mean.mAP:5.2f} %  "
            f"chance rank-1 {100 * result.chance_rank1:.2f} %"
        )
    return 0
