"""Times a training step of the whole model on synthetic tensors: what each module, kernel and option costs or saves.

    python perf/bench_train.py [--device cpu] [--small] [--groups 4] [--rounds 5] [--variants "whole*"] [--json FILE]

Forward with losses, backward and optimiser step of TACAFNet (ResNet-50 at 288x144, bf16 autocast on a GPU; --small: the
demo's model), without data loading. For ranks and ZeRO see bench_ranks.py. Needs PyTorch, Triton and pydantic, but
neither DeepSpeed nor DALI. On a CPU the variants are interleaved in one process, so that noise of the machine affects
all alike; on a GPU they run one after another, and the file is written after every variant. A step that is replayed
from a CUDA graph has one time, not one for each phase. On a CPU, memory of freed tensors is kept, as in a training.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("perf.bench_train")

import argparse
import fnmatch
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from perf.parts.train_step import PHASES, GraphedStep, Step, Variant, batch
from tacaf.child_processes import child_environment
from tacaf.command import Parser, entry, to_path
from tacaf.files import write_json
from tacaf.provenance import environment
from tacaf.train.capture import reason_of
from tacaf.train.processes import keep_freed_memory
from tacaf.vocabulary import InputError

MEASURED_RATE = 790e12  # FLOPs per second of bf16 matrix products of random data on an H200
VARIANTS = (
    Variant("baseline, definitions", False, False, kernels=False),
    Variant("baseline, kernels", False, False),
    Variant("baseline, kernels, channels-last, fused", False, False, channels_last=True, fused=True),
    Variant("whole, definitions", kernels=False),
    Variant("whole, kernels"),
    Variant("+ IPCAM, kernels", cmaam=False),
    Variant("+ CMAAM, kernels", ipcam=False),
    Variant("whole, kernels, channels-last", channels_last=True),
    Variant("whole, kernels, fused optimizer", fused=True),
    Variant("whole, kernels, channels-last, fused", channels_last=True, fused=True),
    Variant(
        "whole, kernels, channels-last, fused, cudnn.benchmark", channels_last=True, fused=True, cudnn_benchmark=True
    ),
    Variant("whole, kernels, channels-last, fused, recompute", channels_last=True, fused=True, recompute=True),
    Variant(
        "whole, kernels, channels-last, fused, cudnn.benchmark, fused norm",
        channels_last=True,
        fused=True,
        cudnn_benchmark=True,
        fused_norm=True,
    ),
    Variant(
        "whole, kernels, channels-last, fused, cudnn.benchmark, graph",
        channels_last=True,
        fused=True,
        cudnn_benchmark=True,
        graph=True,
    ),
    Variant(
        "whole, kernels, channels-last, fused, cudnn.benchmark, fused norm, graph",
        channels_last=True,
        fused=True,
        cudnn_benchmark=True,
        fused_norm=True,
        graph=True,
    ),
    Variant(
        "whole, kernels, channels-last, fused, cudnn.benchmark, compile",
        channels_last=True,
        fused=True,
        compile=True,
        cudnn_benchmark=True,
    ),
    Variant(
        "whole, kernels, channels-last, fused, cudnn.benchmark, compile, graph",
        channels_last=True,
        fused=True,
        compile=True,
        cudnn_benchmark=True,
        graph=True,
    ),
)
PLAIN = "whole, definitions"


def cpu_peak_mib(args: argparse.Namespace, variant: Variant) -> float:
    """A variant's peak memory on a CPU, measured in a process of its own."""
    words = ["--device", "cpu", "--groups", args.groups, "--peak-of", variant.name]
    words += ["--small"] if args.small else []
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, *map(str, words)],
        capture_output=True,
        text=True,
        check=True,
        env=child_environment(),
    )
    return float(done.stdout)


class Timed:
    """A variant that is being timed, with its measurements so far."""

    def __init__(self, variant: Variant, data: dict[str, torch.Tensor], args: argparse.Namespace) -> None:
        self.bf16, self.args = args.device == "cuda" and not args.fp32, args
        self.step = (GraphedStep if variant.graph else Step)(variant, data, args.device, args.small, self.bf16)
        self.first_loss = self.step(keep=False)  # warm-up: builds, tunes, compiles
        self.flops = self._flops(variant) if self.bf16 else None
        self.peak_mib = self._peak_mib(variant)

    def _peak_mib(self, variant: Variant) -> float | None:
        if self.args.device == "cuda":
            return self.step.peak_mib()
        # the compiler itself takes much more memory than the step
        return None if variant.compile else cpu_peak_mib(self.args, variant)

    def _flops(self, variant: Variant) -> int | None:
        """FLOPs of the whole model's products, or None for compiled code, which the counter cannot see into."""
        if variant.compile or not (variant.cmaam and variant.ipcam):
            return None
        with FlopCounterMode(display=False) as counter:
            self.step(keep=False)
        return counter.get_total_flops()

    def row(self) -> dict[str, Any]:
        """The figures so far; images_per_s and matrix_rate_share are those of the median step."""
        images, _, height, width = self.step.data["images"].shape
        medians = {
            f"{phase}_ms": statistics.median(times) if times else None for phase, times in self.step.times.items()
        }
        seconds = statistics.median(self.step.times["step"]) / 1000
        return {
            **self.step.variant._asdict(),
            "images": images,
            "height": height,
            "width": width,
            "small": self.args.small,
            "bf16": self.bf16,
            "first_loss": self.first_loss,
            "peak_mib": self.peak_mib,
            **medians,
            "steps_ms": self.step.times["step"],
            "images_per_s": images / seconds,
            "flops": self.flops,
            "matrix_rate_share": self.flops / seconds / MEASURED_RATE if self.flops else None,
            "error": None,
        }


def chosen(patterns: list[str], device: str) -> list[Variant]:
    """The variants whose names match a pattern, in their order; on a CPU without those of CUDA graphs and cuDNN."""
    return [
        variant
        for variant in VARIANTS
        if any(fnmatch.fnmatchcase(variant.name, pattern) for pattern in patterns)
        and (device == "cuda" or not variant.graph)
        and (device == "cuda" or variant.compile or not variant.cudnn_benchmark)
    ]


Write = Callable[[list[dict[str, Any]]], None]


def measure(
    args: argparse.Namespace, say: Callable[[str], None] = print, write: Write = lambda _: None
) -> list[dict[str, Any]]:
    """A row for each variant. `write` is called with the rows so far whenever there are more or better ones."""
    data = batch(args.device, args.groups, *((96, 48) if args.small else (288, 144)))
    variants = [variant for variant in chosen(args.variants, args.device) if args.compile or not variant.compile]
    rows: list[dict[str, Any]] = []
    # interleaved on a CPU; one after another on a GPU, which frees each one's memory and keeps every finished row
    for together in [[variant] for variant in variants] if args.device == "cuda" else [variants]:
        timed, failed = [], []
        for variant in together:
            try:
                timed.append(Timed(variant, data, args))
                say(f"{variant.name}: first loss {timed[-1].first_loss:.4f}")
            except Exception as error:  # a variant that fails must not lose the others' figures
                failed.append({**variant._asdict(), "error": reason_of(error)})
                say(f"{variant.name}: failed: {failed[-1]['error']}")
        for _ in range(args.rounds):
            for one in timed:
                one.step()
            write(compared([*rows, *(one.row() for one in timed), *failed]))
        rows += [*(one.row() for one in timed), *failed]
        if len(together) == 1 and timed:
            say(f"{together[0].name}: {rows[-1]['step_ms']:.1f} ms, {rows[-1]['images_per_s']:.0f} images/s")
    rows = compared(rows)
    write(rows)
    return rows


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with `ratio_to_plain`, the speed-up over the whole model by its definitions."""
    plain_ms = next((row.get("step_ms") for row in rows if row["name"] == PLAIN), None)
    return [{**row, "ratio_to_plain": plain_ms and row.get("step_ms") and plain_ms / row["step_ms"]} for row in rows]


def added(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """What CMAAM and IPCAM together add to the baseline's step and to its peak memory, kernels against definitions.

    Empty unless all four were measured.
    """
    by_name = {row["name"]: row for row in rows if row.get("step_ms")}
    if not all(f"{part}, {way}" in by_name for part in ("whole", "baseline") for way in ("definitions", "kernels")):
        return {}
    found: dict[str, float | None] = {}
    for what in ("step_ms", "peak_mib"):
        more = {
            way: by_name[f"whole, {way}"][what] - by_name[f"baseline, {way}"][what]
            for way in ("definitions", "kernels")
        }
        found |= {f"added_{what}_{way}": value for way, value in more.items()}
        found[f"added_{what}_ratio"] = more["kernels"] / more["definitions"] if more["definitions"] else None
    return found


def _number(value: float | None, form: str = ".0f") -> str:
    return "-" if value is None else format(value, form)


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'variant':60} {'forward':>9} {'backward':>9} {'optimizer':>9} {'step ms':>9} {'peak MiB':>9}  to plain"]
    for row in rows:
        if row["error"]:
            lines.append(f"{row['name']:60} failed: {row['error']}")
            continue
        times = " ".join(
            f"{_number(row[name], '.1f'):>9}" for name in (*(f"{phase}_ms" for phase in PHASES), "step_ms")
        )
        lines.append(f"{row['name']:60} {times} {_number(row['peak_mib']):>9}  {_number(row['ratio_to_plain'], '.2f')}")
    return "\n".join(lines)


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="the demo's model and image size")
    parser.add_argument("--fp32", action="store_true", help="no autocast on a GPU (a CPU has none here)")
    parser.add_argument("--groups", type=int, default=4, help="pair groups in the batch, with 24 images each")
    parser.add_argument("--rounds", type=int, default=5, help="number of times that every variant is timed")
    parser.add_argument(
        "--variants", nargs="+", default=["*"], metavar="NAME", help='names or patterns such as "whole*"; default all'
    )
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--json", type=to_path)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.device == "cpu":
        keep_freed_memory()  # as a training does
    if args.peak_of:
        variant = next(variant for variant in VARIANTS if variant.name == args.peak_of)
        data = batch("cpu", args.groups, *((96, 48) if args.small else (288, 144)))
        print(Step(variant, data, "cpu", args.small, False).peak_mib())
        return 0
    if not chosen(args.variants, args.device):
        names = "; ".join(variant.name for variant in VARIANTS)
        raise InputError(f"expected names of variants, got {' '.join(args.variants)}; there are: {names}")
    facts = {"environment": environment(1), "rounds": args.rounds}

    def write(rows: list[dict[str, Any]]) -> None:
        if args.json:
            write_json(args.json, {**facts, **added(rows), "rows": rows})

    rows = measure(args, write=write)
    print(table(rows))
    if more := added(rows):
        print(
            f"CMAAM + IPCAM add {more['added_step_ms_kernels']:.0f} ms and {more['added_peak_mib_kernels']:.0f} MiB"
            f" with kernels, {more['added_step_ms_definitions']:.0f} ms and"
            f" {more['added_peak_mib_definitions']:.0f} MiB by their definitions"
        )
    return 1 if any(row["error"] for row in rows) else 0
