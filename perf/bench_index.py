"""Measures the index and the plan of a large set: 10 million images of 1 million identities, without pixels.

    python perf/bench_index.py [--identities 1000000] [--json FILE]

Writes a shard set's index and columns (the tars are empty files of the right length), then measures in a fresh process:
seconds to open it and to select the training set, peak memory, and milliseconds for a batch at steps anywhere in the
first hundred epochs, with and without windows. Nothing is cached when a batch is computed, as after a resume.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("perf.bench_index")

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perf.parts.machine import peak_resident_mib, resident_mib
from tacaf.command import Parser, entry, to_path
from tacaf.data.index import ShardIndex, select_training
from tacaf.data.plan import Plan, PlanConfig
from tacaf.files import write_json
from tacaf.provenance import environment
from tacaf.shard_columns import column_bytes, member_of, tally
from tacaf.shard_set import ColumnFacts, IndexFile, ShardFacts
from tacaf.vocabulary import COLUMN_FOLDER, COLUMNS, INDEX_FILE

IMAGES_OF_A_MODALITY = 5
IDENTITIES_OF_A_SHARD = 650  # 256 MiB of images of 40 kB
IMAGE_BYTES = 40_000
STEPS = 40  # timed batches


def write_index(folder: Path, identities: int) -> None:
    """Write a shard set of `identities` people with ten images each, whose tars have no content."""
    each = 2 * IMAGES_OF_A_MODALITY
    row = np.arange(identities * each)
    pid, inside = row // each, row % each
    shard = pid // IDENTITIES_OF_A_SHARD
    columns = {
        "shard": shard,
        "offset": (row - shard * IDENTITIES_OF_A_SHARD * each) * IMAGE_BYTES,
        "size": np.full(len(row), IMAGE_BYTES),
        "pid": pid,
        "camid": 1 + inside % IMAGES_OF_A_MODALITY // 2,
        "modality": inside // IMAGES_OF_A_MODALITY,
        "split": np.zeros(len(row)),
        "number": 1 + inside,
    }
    (folder / COLUMN_FOLDER).mkdir(parents=True)
    facts = {}
    for name, values in columns.items():
        data = column_bytes(values.astype(COLUMNS[name]))
        (folder / member_of(name)).write_bytes(data)
        facts[name] = ColumnFacts(dtype=COLUMNS[name], sha256=hashlib.sha256(data).hexdigest())
    shards = []
    for number, images in enumerate(np.bincount(shard).tolist()):
        path = folder / f"paper-{number:06d}.tar"
        with path.open("wb") as file:
            file.truncate(images * IMAGE_BYTES)
        shards.append(ShardFacts(name=path.name, bytes=images * IMAGE_BYTES, sha256="0" * 64, images=images))
    people = list(range(identities))
    index = IndexFile(
        name="paper",
        images=len(row),
        counts=tally(pid, columns["modality"], {"train": people}),
        splits={"train": people},
        pid_names=None,
        locations=None,
        shards=shards,
        columns=facts,
        left_out=[],
        left_out_count=0,
        source="paper",
        scales={},
    )
    (folder / INDEX_FILE).write_text(index.to_json())


def measure(folder: Path) -> dict[str, Any]:
    """Times and peak memory of this process."""
    before = resident_mib()
    began = time.perf_counter()
    index = ShardIndex.open(folder)
    opened = time.perf_counter()
    training_set = select_training(index, "train")
    selected = time.perf_counter()
    found = {
        "images": len(index),
        "identities": training_set.identities,
        "open_s": opened - began,
        "select_s": selected - opened,
    }
    draw = np.random.default_rng(0)
    ways = {"": PlanConfig(), "_windows": PlanConfig(window_shards=64), "_cameras": PlanConfig(sampler="camera")}
    for name, config in ways.items():
        times = []
        plan = Plan(training_set, config, seed=0)
        for epoch in draw.integers(0, 100, STEPS).tolist():  # a batch of another epoch leaves nothing in the caches
            step = int(draw.integers(plan.steps_per_epoch))
            start = time.perf_counter()
            plan.global_batch(epoch, step)
            times.append(1000 * (time.perf_counter() - start))
        found |= {f"batch{name}_ms_median": float(np.median(times)), f"batch{name}_ms_max": max(times)}
    return {**found, "peak_memory_mib": peak_resident_mib(), "memory_before_mib": before}


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=1_000_000)
    parser.add_argument("--json", type=to_path)
    parser.add_argument("--child", type=to_path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        print(json.dumps(measure(args.child)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        write_index(Path(folder) / "set", args.identities)
        command = [sys.executable, __file__, "--child", str(Path(folder) / "set")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    if args.json:
        write_json(args.json, {"environment": environment(1), "result": result})
    for name, value in result.items():
        print(f"{name:24} {value:,.2f}" if isinstance(value, float) else f"{name:24} {value:,}")
    return 0
