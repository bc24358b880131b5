"""Measures accuracy against training time, with the kernels and with every op by its definition in plain PyTorch.

    python perf/bench_accuracy.py --shards SHARDS --out DIR [--config FILE] [--set a.b=c ...] [--json FILE]
    python perf/bench_accuracy.py --shards SHARDS --out DIR --ways graph kernels

By default the full recipe, ResNet-50 at 288x144 in bf16 from scratch; on a benchmark's set (`python -m shards synth
--benchmark plain_1`, then pack) it trains on 400 identities and is scored on 100 others. The way `graph` has the
kernels, the fused norm and the step replayed from a CUDA graph, which needs a GPU. All trainings have the same batches
and initial weights and run one after the other, in the order of --ways; the last is compared with the first. The same
command resumes from what is in DIR. Time is the sum of the steps' times; it includes waits for images and the
compilation in the first step, which is also given separately, but no evaluations, saves or start-up. Memory is the
process's peak, evaluations included. On a CPU the kernels' own CPU path is measured. With --json FILE a picture is
written beside FILE.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("perf.bench_accuracy")

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure

from launch.study.trainings import SCRIPT, Training, run_all
from perf.plot import STYLE
from tacaf.command import EXIT_STOPPED, Parser, entry, to_location, to_path
from tacaf.evaluation.ranking import HEADLINE
from tacaf.evaluation.results import read_results
from tacaf.files import write_whole
from tacaf.provenance import environment, published
from tacaf.run_files import (
    ENVIRONMENT_FILE,
    METRICS_FILE,
    RESULTS_FOLDER,
    EvaluationRecord,
    StepRecord,
    read_metrics,
    read_starts,
)
from tacaf.vocabulary import InputError

WAYS = {
    "definitions": "every op by its definition",
    "kernels": "with the kernels",
    "graph": "with the kernels, in a CUDA graph",
}
COLOURS = {"definitions": "#9aa4ad", "kernels": "#2563a8", "graph": "#1b7f4d"}
SETTINGS = {
    "definitions": ("model.kernels=reference",),
    "kernels": ("model.kernels=auto",),
    # A graph of the whole step needs gradients that no ZeRO stage touches from the host.
    "graph": (
        "model.kernels=auto",
        "model.fused_norm=true",
        "train.cuda_graph=true",
        "deepspeed.zero_optimization.stage=0",
    ),
}
NEARLY = 0.9  # share of the lower final score; the times to reach this score are compared


def trainings(args: argparse.Namespace) -> dict[str, Training]:
    """The trainings, by their way."""
    place = args.shards if "://" in args.shards else Path(args.shards).resolve()
    settings = (*args.set, f"data.shards={place}", "train.log_every=1")
    return {way: Training(args.out / way, args.config, (*settings, *SETTINGS[way])) for way in args.ways}


def curve(run: Path) -> dict[str, Any]:
    """Figures from a finished run's metrics: scores over seconds of training, speed, memory."""
    lines = list(read_metrics(run / METRICS_FILE))
    steps = [line for line in lines if isinstance(line, StepRecord)]
    scored = [line for line in lines if isinstance(line, EvaluationRecord)]
    step_ms = {line.global_step: line.step_ms for line in steps if line.step_ms is not None}
    if not scored or sorted(step_ms) != list(range(1, len(steps) + 1)):
        raise InputError(
            f"{run}: expected every step and a score in metrics.jsonl, got {len(steps)} steps and {len(scored)} scores;"
            " remove the run"
        )
    evaluations = {line.global_step: line for line in scored if line.split == scored[-1].split}
    seconds = {0: 0.0}
    for step in sorted(step_ms):
        seconds[step] = seconds[step - 1] + step_ms[step] / 1000
    points = [
        {"step": step, "training_s": round(seconds[step], 1), **line.model_dump(include=set(HEADLINE))}
        for step, line in sorted(evaluations.items())
    ]
    results = read_results(run / RESULTS_FOLDER)
    return {
        "split": scored[-1].split,
        "points": points,
        "first_step_ms": step_ms[1],
        "training_s": round(seconds[len(steps)], 1),
        "step_ms_p50": round(statistics.median(step_ms.values()), 2),
        "images_per_s_p50": statistics.median(line.images_per_s for line in steps),
        "data_wait_share_p50": statistics.median(line.data_wait_share for line in steps),
        "peak_memory_mib": max(line.peak_memory_mib for line in steps if line.peak_memory_mib is not None),
        "results": [
            {name: value for name, value in result.as_json().items() if name != "trials"} for result in results
        ],
        "starts": published([start.model_dump() for start in read_starts(run / ENVIRONMENT_FILE)]),
    }


def seconds_to(points: Sequence[dict[str, Any]], score: str, least: float) -> float | None:
    """Training seconds until the first evaluation whose score reaches `least`, or None if none does."""
    return next((point["training_s"] for point in points if point[score] >= least), None)


def compare(ways: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The ways side by side. `ratio` is the speed-up of the last over the first."""
    plain, fused = (list(ways.values())[place] for place in (0, -1))
    goal = NEARLY * min(way["points"][-1]["mAP"] for way in ways.values())
    reached = {name: seconds_to(way["points"], "mAP", goal) for name, way in ways.items()}
    return {
        "step_ms_ratio": round(plain["step_ms_p50"] / fused["step_ms_p50"], 3),
        "training_s_ratio": round(plain["training_s"] / fused["training_s"], 3),
        "mAP_goal": goal,
        "seconds_to_mAP_goal": reached,
        "final_difference": {name: fused["points"][-1][name] - plain["points"][-1][name] for name in HEADLINE},
    }


def picture(ways: dict[str, dict[str, Any]]) -> Figure:
    """mAP against the seconds of training."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        axes = figure.subplots()
        for name, way in ways.items():
            axes.plot(
                [point["training_s"] for point in way["points"]],
                [100 * point["mAP"] for point in way["points"]],
                marker="o",
                markersize=3,
                color=COLOURS[name],
                label=WAYS[name],
            )
        axes.set_xlabel("seconds of training, evaluations left out")
        axes.set_ylabel("mAP, per cent")
        axes.set_xlim(0)
        axes.set_ylim(0)
        axes.legend(frameon=False, loc="lower right")
    return figure


def write(path: Path, content: dict[str, Any]) -> None:
    """Write the result file atomically."""
    write_whole(path, json.dumps({"environment": environment(1), **content}, indent=1, allow_nan=False) + "\n")


def measure(args: argparse.Namespace) -> int:
    """Run the trainings that are not finished, then compare them. Returns 1 if one failed, 75 after a stop signal."""
    runs, failed = trainings(args), []
    for one in runs.values():
        one.refuse_other_settings()
        config = one.config()
        if config.train.choose != "last" or (config.data.split == "train" and config.evaluation.split == "test"):
            raise InputError(
                "expected one list of identities for every score and the last epoch's model, got train.choose"
                f" {config.train.choose}, data.split {config.data.split}, evaluation.split {config.evaluation.split};"
                " set evaluation.split=val with data.split=train, and train.choose=last"
            )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)

    def ended(one: Training, status: int) -> None:
        if status not in (0, EXIT_STOPPED):
            failed.append(f"{one.folder.name}: its training ended with status {status}")
        elif args.json:  # already written here, in case the other training fails
            finished = {name: curve(other.folder) for name, other in runs.items() if other.finished()}
            write(args.json, {"complete": False, "ways": finished})

    if not run_all([one for one in runs.values() if not one.finished()], ended):
        print("stopped as asked; the same command resumes from here", flush=True)
        return EXIT_STOPPED
    if failed:
        raise SystemExit("; ".join(failed))
    ways = {name: curve(one.folder) for name, one in runs.items()}
    found = compare(ways)
    for name, way in ways.items():
        last = way["points"][-1]
        print(
            f"{name:12} {way['step_ms_p50']:8.1f} ms a step, {way['training_s']:7.0f} s in all, "
            f"mAP {100 * last['mAP']:.1f} %, {100 * found['mAP_goal']:.1f} % reached after"
            f" {found['seconds_to_mAP_goal'][name]:.0f} s, {way['peak_memory_mib']:.0f} MiB"
        )
    if args.json:
        settings = published(list(runs.values())[-1].config().model_dump(mode="json", exclude={"run"}))
        write(args.json, {"complete": True, **found, "ways": ways, "config": settings})
        picture(ways).savefig(args.json.with_suffix(".svg"), metadata={"Date": None})
    return 0


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=to_location, required=True, help="a packed set: a folder or an address")
    parser.add_argument("--out", type=to_path, required=True, metavar="DIR", help="folder for the runs")
    parser.add_argument("--config", type=to_path, default=SCRIPT.parent / "configs" / "sysu_mm01.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="for all trainings")
    parser.add_argument(
        "--ways", nargs="+", choices=tuple(WAYS), default=["definitions", "kernels"], help="default: %(default)s"
    )
    parser.add_argument("--json", type=to_path)
    args = parser.parse_args(argv)
    args.ways = list(dict.fromkeys(args.ways))
    if "graph" in args.ways and not torch.cuda.is_available():
        raise InputError("the way graph needs a GPU, and this machine has none; leave it out of --ways")
    return measure(args)
