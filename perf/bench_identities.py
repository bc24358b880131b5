"""Memory and traffic of training over many identities: a table by formula, and real steps that check it.

    python perf/bench_identities.py [--identities 200000] [--table | --runs N ...] [--json FILE]

The table is arithmetic (`tacaf.train.cost.states_of`) for the full model with shared node classifiers. The measured
rows are steps of the demo's model on noise under DeepSpeed on CPU, each in fresh processes: resident memory of the
larger rank between steps, and its peak in a step, above what the same process held before the model was built; seconds
of a step, the least of three; and in one more step the bytes that collective calls move into a rank. `--runs` chooses
rows by their number in `RUNS`, from 0 on.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("perf.bench_identities")

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from perf.parts.machine import peak_resident_mib, resident_mib, restart_peak
from perf.parts.traffic import Traffic
from tacaf import distributed
from tacaf.child_processes import ROOT, child_environment
from tacaf.command import Parser, entry, to_path
from tacaf.datasets import SYSU_MM01
from tacaf.files import write_json
from tacaf.losses.total import TacafLoss
from tacaf.model.tacafnet import ModelConfig, TacafNet
from tacaf.optim import build_optimizer
from tacaf.provenance import environment
from tacaf.train.config import Config
from tacaf.train.cost import MIB, classifier_parameters_of, parameters_of, states_of
from tacaf.train.engine import build_engine, prepare_deepspeed
from tacaf.train.forward import forward, noise_batch
from tacaf.train.processes import start_distributed, stop_distributed
from tacaf.train.ranges import Ranges
from tacaf.train.update import update

STEPS = 3
SMALL = {
    "backbone": {"width": 16, "blocks": [1, 1, 1, 1]},
    "ipcam": {"node_width": 64, "attention_width": 32, "pair_width": 32, "classifiers": "shared"},
}


class Case(NamedTuple):
    """A measured row."""

    ranks: int
    stage: int  # of ZeRO
    chunk: int  # identities that a classifier computes at once; 0: all
    split: bool  # classifiers split by identities
    negatives: float = 1.0  # share of the other identities that a step uses


RUNS = (
    Case(1, 0, 0, False),
    Case(1, 0, 8192, False),
    Case(1, 0, 8192, True),
    Case(2, 1, 8192, False),
    Case(2, 2, 8192, False),
    Case(2, 3, 8192, False),
    Case(2, 1, 8192, True),
    Case(2, 2, 8192, True),
    Case(1, 0, 8192, True, 0.1),
    Case(2, 1, 8192, True, 0.1),
)
TABLE = [
    (identities, stage, ranks, split)
    for identities in (SYSU_MM01.training_identities[0], 10_000, 100_000, 1_000_000)
    for stage, split in ((1, False), (2, False), (3, False), (1, True), (2, True))
    for ranks in (1, 8, 64)
]
# ZeRO-3 lets go of a piece as soon as it is used, where by default it keeps a billion numbers for their next use; and
# its bucket for gradients holds ten million numbers, where by default it takes 2 GB of each rank.
ZERO_3 = {
    "stage": 3,
    "stage3_max_live_parameters": 10_000_000,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
    "reduce_bucket_size": 10_000_000,
}


def config_of(case: Case, identities: int) -> Config:
    zero = ZERO_3 if case.stage == 3 else {"stage": case.stage}
    classifier = {"sharding": "identities" if case.split else "none", "negatives": case.negatives}
    return Config.model_validate(
        {
            "run": tempfile.gettempdir(),
            "data": {"shards": "none", "augment": {"height": 96, "width": 48}},
            "model": {**SMALL, "chunk": case.chunk or identities, "classifier": classifier},
            "train": {"precision": "fp32"},
            "deepspeed": {"zero_optimization": zero},
        }
    )


def measure(identities: int, case: Case) -> dict[str, Any]:
    """This process as one rank: build, three steps, and what they took; a fourth to count its traffic."""
    place = start_distributed()
    config = config_of(case, identities)
    before = resident_mib()
    torch.manual_seed(0)
    model = TacafNet(config.model, identities)
    built = peak_resident_mib() - before
    parameters = (model.backbone_parameters(), model.new_parameters())
    optimizer = build_optimizer(config.optim, *parameters, config.data.plan.images_per_modality)
    ranges = Ranges.of_model(config, model, config.data.plan.images_per_modality)
    groups = config.data.plan.identities_per_batch // config.data.plan.pair_group // place.world_size
    batch = noise_batch(config, groups)
    batch = batch._replace(label_B=batch.label_B * (identities // 8))
    prepare_deepspeed()
    engine = build_engine(config, model, optimizer, len(batch.label_B))
    criterion, peaks, times = TacafLoss(config.loss), [], []

    def step() -> float:
        loss, _ = criterion(forward(engine, batch, config), batch.label_B)
        update(engine, loss, clip_norm=config.optim.clip_norm, ranges=ranges)
        return float(loss)

    for _ in range(STEPS):
        restart_peak()
        distributed.barrier()
        begin = time.perf_counter()
        loss = step()
        times.append(time.perf_counter() - begin)
        peaks.append(peak_resident_mib() - before)
    rows = distributed.numbers_of_ranks([built, resident_mib() - before, max(peaks), min(times)])
    most = [max(column) for column in zip(*rows, strict=True)]
    with Traffic(place.world_size) as traffic:
        step()
    numbers = parameters_of(config.model, identities)
    in_ranges = classifier_parameters_of(config.model, identities) if case.split else 0
    return {
        "parameters": numbers,
        "build_peak_mib": most[0],
        "between_steps_mib": most[1],
        "step_peak_mib": most[2],
        "estimate_mib": sum(states_of(numbers, place.world_size, case.stage, 1, in_ranges)) / MIB,
        "step_s": most[3],
        "moved_mib": sum(traffic.bytes_by_call.values()) / MIB,
        "moved_mib_by_call": {name: moved / MIB for name, moved in traffic.bytes_by_call.items()},
        "loss": loss,
    }


def table(config: ModelConfig, images: int) -> list[dict[str, Any]]:
    """Rows of MiB a rank by formula: states, and the logits of the largest classifier, whole and by the piece."""
    rows = []
    for identities, stage, ranks, split in TABLE:
        in_ranges = classifier_parameters_of(config, identities) if split else 0
        states = states_of(parameters_of(config, identities), ranks, stage, 1, in_ranges)
        logits = 4 * config.ipcam.classified_nodes * images * identities / MIB
        rows.append(
            {
                "identities": identities,
                "stage": stage,
                "ranks": ranks,
                "split": split,
                **{f"{name}_mib": value / MIB for name, value in states._asdict().items()},
                "logits_whole_mib": logits,
                "logits_piece_mib": logits * min(1, config.chunk / identities),
            }
        )
    return rows


def run(identities: int, number: int) -> dict[str, Any]:
    """`measure` of a row of RUNS, in fresh processes."""
    case = RUNS[number]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    launcher = [sys.executable]
    if case.ranks > 1:
        launcher = [
            str(Path(sys.executable).parent / "deepspeed"),
            "--num_accelerators",
            str(case.ranks),
            "--master_port",
            str(port),
        ]
    with tempfile.NamedTemporaryFile() as found:
        child = [__file__, "--child", found.name, str(identities), str(number)]
        # freed tensors of a megabyte and more go back to the system at once, so that resident memory is what is held
        given = child_environment(MALLOC_MMAP_THRESHOLD_=str(MIB))
        subprocess.run([*launcher, *child], cwd=ROOT, env=given, check=True, capture_output=True)
        row = json.loads(Path(found.name).read_text())
    return {"identities": identities, **case._asdict(), "chunk": case.chunk or identities, **row}


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=200_000, help="of the measured rows")
    parser.add_argument("--table", action="store_true", help="the table alone, nothing measured")
    parser.add_argument("--runs", type=int, nargs="+", choices=range(len(RUNS)), help="of the measured rows; all")
    parser.add_argument("--json", type=to_path)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # DeepSpeed's launcher adds it
    args = parser.parse_args(argv)
    if args.child:
        identities, number = map(int, args.child[1:])
        row = measure(identities, RUNS[number])
        if os.environ["RANK"] == "0":
            Path(args.child[0]).write_text(json.dumps(row))
        stop_distributed()
        return 0
    full = ModelConfig.model_validate({"ipcam": {"classifiers": "shared"}})
    result: dict[str, Any] = {"table": table(full, images=96), "measured": []}
    for row in result["table"]:
        print("  ".join(f"{name} {value:,.0f}" for name, value in row.items()))
    if not args.table:
        for number in args.runs or range(len(RUNS)):
            result["measured"].append(run(args.identities, number))
            numbers = {name: value for name, value in result["measured"][-1].items() if not isinstance(value, dict)}
            print("  ".join(f"{name} {value:,.4g}" for name, value in numbers.items()), flush=True)
            if args.json:
                write_json(args.json, {"environment": environment(1), **result})
    elif args.json:
        write_json(args.json, {"environment": environment(1), **result})
    return 0
