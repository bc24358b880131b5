"""Times whole training steps on ranks: plain DDP and ZeRO 0 to 3, split into data, forward, backward and optimizer.

    python perf/bench_ranks.py [--ranks 1 2] [--config launch/configs/demo.yaml] [--rounds 10] [--json FILE]

The batches are those of a procedural set, read through DALI. All ways run interleaved in the same processes, so that
noise of the machine affects all alike. Communication is part of the other phases; it is the time that the profiler
reports for collective calls, including waits for other ranks.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("perf.bench_ranks")

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

from tacaf import distributed
from tacaf.checkout import ROOT
from tacaf.child_processes import child_environment
from tacaf.command import Parser, entry, to_path
from tacaf.data.index import ShardIndex, select_training
from tacaf.data.plan import Plan
from tacaf.data.training_pipeline import TrainingPipeline
from tacaf.data.training_source import TrainingSource
from tacaf.files import write_json
from tacaf.losses.total import TacafLoss
from tacaf.optim import build_optimizer
from tacaf.provenance import environment
from tacaf.train.config import Config, load_config
from tacaf.train.engine import build_engine, prepare_deepspeed
from tacaf.train.forward import forward
from tacaf.train.new_model import build_model
from tacaf.train.processes import Place, keep_freed_memory, start_distributed, stop_distributed
from tacaf.train.run_log import peak_memory_mib

WAYS = ("ddp", 0, 1, 2, 3)
PHASES = ("data", "forward", "backward", "optimizer")
PROFILED = 2  # steps
TOLERANCE = 0.01  # of the loss: AdamW's first steps amplify rounding; `tests/train/test_ranks.py` is stricter


class Way:
    """One way to share the work: DDP, or DeepSpeed's engine under a ZeRO stage."""

    def __init__(self, way: str | int, config: Config, index: ShardIndex, plan: Plan, place: Place) -> None:
        stage = 0 if way == "ddp" else way
        self.config = config.model_copy(update={"deepspeed": {"zero_optimization": {"stage": stage}}})
        self.place, self.way = place, way
        model, _ = build_model(self.config, plan.training_set.identities)
        model.to(place.device).train()
        images = config.data.plan.images_per_modality
        self.optimizer = build_optimizer(config.optim, model.backbone_parameters(), model.new_parameters(), images)
        if way == "ddp":
            self.model: Any = DistributedDataParallel(model, broadcast_buffers=False)
        else:
            share = plan.images // place.world_size
            self.model = build_engine(self.config, model, self.optimizer, share)
        self.criterion = TacafLoss(config.loss)
        source = TrainingSource(plan, config.data.augment, 10**6, rank=place.rank, ranks=place.world_size)
        self.batches = TrainingPipeline(index, source, config.data, device_id=place.device_id)
        self.times: dict[str, list[float]] = {phase: [] for phase in PHASES}
        self.loss = 0.0

    def step(self, keep: bool = True) -> None:
        marks = [self._now()]
        batch = next(self.batches).to(self.place.device)
        marks.append(self._now())
        loss, _ = self.criterion(forward(self.model, batch, self.config), batch.label_B)
        marks.append(self._now())
        if self.way == "ddp":
            loss.backward()
            marks.append(self._now())
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        else:
            self.model.backward(loss)
            marks.append(self._now())
            self.model.step()
        marks.append(self._now())
        self.loss = float(loss.detach())
        if keep:
            for phase, (sooner, later) in zip(PHASES, itertools.pairwise(marks), strict=True):
                self.times[phase].append(1000 * (later - sooner))

    def communication_ms(self) -> float:
        """Milliseconds of one step that are spent in the backend's collective calls."""
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            for _ in range(PROFILED):
                self.step(keep=False)
        events = [event for event in profiled.events() if event.name.startswith(("gloo:", "nccl:"))]
        return sum(event.time_range.elapsed_us() for event in events) / 1000 / PROFILED

    def _now(self) -> float:
        if self.place.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def child(args: argparse.Namespace) -> None:
    """Run as one rank; the first rank prints the rows."""
    place = start_distributed()
    if place.device.type == "cpu":
        keep_freed_memory()  # as a training does
    prepare_deepspeed()
    config = load_config(args.config, [f"data.shards={args.shards}", "run=unused", "data.threads=1", *args.set])
    index = ShardIndex.open(config.data.shards, config.data.remote)
    plan = Plan(select_training(index, config.data.split), config.data.plan, config.seed)
    plan.check_ranks(place.world_size)
    ways = [Way(way, config, index, plan, place) for way in WAYS if str(way) in args.ways]
    for way in ways:
        way.step(keep=False)
        way.step(keep=False)
    for _ in range(args.rounds):
        for way in ways:
            way.step()
    rows = []
    for way in ways:
        medians = {f"{phase}_ms": statistics.median(times) for phase, times in way.times.items()}
        losses = distributed.numbers_of_ranks([way.loss])
        rows.append(
            {
                "way": f"ZeRO {way.way}" if way.way != "ddp" else "DDP",
                "ranks": place.world_size,
                "images": plan.images,
                **medians,
                "step_ms": sum(medians.values()),
                "communication_ms": way.communication_ms(),
                "loss": statistics.mean(row[0] for row in losses),
            }
        )
    if place.rank == 0:
        print(json.dumps({"rows": rows, "peak_memory_mib_of_all_ways": peak_memory_mib(place.device)}))
    stop_distributed()


def run_ranks(ranks: int, shards: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    words = [__file__, "--shards", shards, "--config", args.config, "--rounds", args.rounds, "--ways", *args.ways]
    settings = [part for value in args.set for part in ("--set", value)]
    done = subprocess.run(
        [*launcher, "--nproc-per-node", str(ranks), *map(str, words), *settings],
        env=child_environment(OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1")),
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        sys.exit(f"error: {ranks} ranks ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"rows"')))["rows"]


def check(rows: list[dict[str, Any]]) -> None:
    """Refuse to report figures if the ways, which see the same batches, do not have the same loss."""
    losses = [row["loss"] for row in rows]
    if max(losses) - min(losses) > TOLERANCE * max(losses):
        seen = ", ".join(f"{row['way']} on {row['ranks']} {row['loss']:.5f}" for row in rows)
        sys.exit(f"error: expected the same loss every way, got {seen}; no figures")


def table(rows: list[dict[str, Any]]) -> str:
    names = [*(f"{phase}_ms" for phase in PHASES), "step_ms", "communication_ms"]
    lines = [f"{'ranks':5} {'way':7}" + "".join(f"{name:>18}" for name in names) + "  images/s"]
    for row in rows:
        figures = "".join(f"{row[name]:18.1f}" for name in names)
        lines.append(f"{row['ranks']:5} {row['way']:7}{figures}  {1000 * row['images'] / row['step_ms']:.0f}")
    return "\n".join(lines)


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--config", type=to_path, default=ROOT / "launch" / "configs" / "demo.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="as for launch/train.py")
    parser.add_argument("--ways", nargs="+", choices=[str(way) for way in WAYS], default=[str(way) for way in WAYS])
    parser.add_argument("--rounds", type=int, default=10, help="number of times that every way is timed")
    parser.add_argument("--json", type=to_path)
    parser.add_argument("--shards", type=to_path, help=argparse.SUPPRESS)  # the children's side
    args = parser.parse_args(argv)
    if args.shards:
        child(args)
        return 0
    from shards.pedestrians.synth import synthesise
    from shards.sources import sysu_mm01

    with tempfile.TemporaryDirectory() as folder:
        raw, packed = Path(folder) / "raw", Path(folder) / "shards"
        synthesise(raw, layout="sysu_mm01", identities=20, seed=0, workers=1)
        sysu_mm01.pack(raw, packed)
        rows = [row for ranks in args.ranks for row in run_ranks(ranks, packed, args)]
    check(rows)
    if args.json:
        facts = {
            "environment": environment(1),
            "config": args.config.name,
            "set": args.set,
            "rounds": args.rounds,
        }
        write_json(args.json, {**facts, "rows": rows})
    print(table(rows))
    return 0
