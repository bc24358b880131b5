"""Predicts how long every op and the whole step take on an H100 and an H200, and sets measurements beside it.

    python perf/performance_model.py [--measured FILE.json ...] [--out perf/results/kernels_gpu.md]

The prediction counts bytes and operations of every kernel (perf/parts/launches.py) and divides them by rates. The rates
of copies and products were measured on such cards, that of the L2 cache on an H200; some efficiencies are assumed. So a
prediction is good to about 30 per cent. --measured takes result files of perf/bench_kernels.py and
perf/bench_train.py from a GPU, or of a whole call of perf/gpu_suite.py; without them every measured cell says "not
measured".
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # so that it runs in a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tacaf.start import start

if __name__ == "__main__":
    start("perf.performance_model")

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from perf.parts.cases import Case, both_case, cases
from perf.parts.launches import COMPILED, EAGER, ELEMENT, Launch, Rival, Shape, launches, shape_of
from perf.parts.step_model import STEPS, step_ms
from tacaf.command import Parser, entry, to_path
from tacaf.files import read_bytes, shown, write_whole
from tacaf.vocabulary import InputError

OUT = Path(__file__).resolve().parent / "results" / "kernels_gpu.md"
PASSES = ("forward", "backward")
NOT_MEASURED = "not measured"
MEMORY_EFFICIENCY = 0.85  # of a copy's rate, assumed
# Of the L2 cache's rate. The scores and products of an alignment drew 4.3 TB/s out of it on an H200
# (perf/results/gpu/kernel_times.json), where a loop that only reads drew 7.0.
CACHE_EFFICIENCY = 0.61
PRODUCT_FLOPS_PER_S = 500e12  # what our products reach, assumed; 470 in the scores, which the cache limits
GAP_US = 1.5  # between two kernels of a CUDA graph, assumed
EAGER_GAP_US = 5.0  # between two operators of plain PyTorch without a graph, assumed
CACHED_BYTES = 30e6  # maps up to this size stay in the L2 cache from one kernel to the next, assumed
RIVAL_HITS = 0.9  # share of a rival's bytes that come from memory, assumed


@dataclass(frozen=True)
class Gpu:
    """Rates of one card. Copy and bf16 product were measured on one of each, and are the highest seen.

    The H200 of perf/results/gpu copied at 4.15 to 4.25 TB/s and multiplied at 667 to 715 TFLOP/s. The lower rates would
    only raise our share of the ceiling, so the higher ones stay.
    """

    name: str
    copy_bytes_per_s: float
    product_flops_per_s: float
    # a loop over 20 MB on an H200, 7.3 in a later run (perf/results/gpu/call_1.json); assumed for an H100
    cache_bytes_per_s: float = 7.0e12
    cache_note: str = ""

    def memory_us(self, bytes_: float, maps: float) -> float:
        rate = min(self.cache_bytes_per_s, 2 * self.copy_bytes_per_s) if maps <= CACHED_BYTES else self.copy_bytes_per_s
        return 1e6 * bytes_ / (rate * MEMORY_EFFICIENCY)


GPUS = (Gpu("H100", 3.0e12, 798e12, cache_note=" (assumed)"), Gpu("H200", 4.3e12, 790e12))


def launch_us(launch: Launch, gpu: Gpu, maps: float) -> float:
    """The slowest of a launch's limits, what overlaps with nothing, and the gap to the next."""
    limits = (
        gpu.memory_us(launch.memory_bytes, maps),
        1e6 * launch.cache_bytes / (gpu.cache_bytes_per_s * CACHE_EFFICIENCY),
        1e6 * launch.flops / PRODUCT_FLOPS_PER_S,
        launch.waiting_us,
    )
    return max(limits) + launch.fixed_us + GAP_US


def ours_ms(case: Case, pass_: str, gpu: Gpu) -> float:
    """Our kernels, replayed from a CUDA graph."""
    shape = shape_of(case)
    return sum(launch_us(launch, gpu, shape.maps) for launch in launches(case.op, pass_, shape)) / 1000


def rival_ms(rivals: dict[tuple[str, str], Rival], case: Case, pass_: str, gpu: Gpu, graphed: bool) -> float | None:
    """Plain PyTorch without a graph, or compiled and replayed from one; None where its bytes were not counted."""
    rival, shape = rivals.get((case.op, pass_)), shape_of(case)
    if rival is None:
        return None
    product_us = 1e6 * 1.6 * shape.product / PRODUCT_FLOPS_PER_S + 4  # rows of 162 keep cuBLAS from its fast kernels
    busy_us = gpu.memory_us(rival.maps * shape.maps * RIVAL_HITS, shape.maps) + rival.products * product_us
    return (busy_us + rival.kernels * GAP_US if graphed else max(busy_us, rival.kernels * EAGER_GAP_US)) / 1000


def least_ms(case: Case, pass_: str, gpu: Gpu) -> float:
    """No kernel can be faster: every input read once, every output written once, or the products alone."""
    moved_s = case.moved[pass_](ELEMENT) / gpu.copy_bytes_per_s
    return 1000 * max(moved_s, case.flops[pass_] / gpu.product_flops_per_s)


class Measured:
    """Rows of result files, by GPU."""

    def __init__(self, paths: list[Path]) -> None:
        self.sources: list[str] = []
        self.kernels: dict[tuple[Any, ...], float] = {}
        self.steps: dict[tuple[str, str], float] = {}
        for path in paths:
            self._read(path)

    def _read(self, path: Path) -> None:
        # Imported here, because the prediction alone needs PyTorch and nothing else.
        from tacaf.documents import MOST_BYTES, load_json

        found = load_json(read_bytes(path, MOST_BYTES), shown(path), MOST_BYTES)
        results = _results(found)
        if not results:
            raise InputError(f"{path}: expected a result of bench_kernels.py or bench_train.py; make one with --json")
        steps: dict[tuple[str, str], float] = {}
        for result in results:
            self._add(path, result, steps)
        self.steps |= steps

    def _add(self, path: Path, found: dict[str, Any], steps: dict[tuple[str, str], float]) -> None:
        """Add a result's rows. Of a step that several parts of a call timed, the first one counts."""
        gpu = next((gpu.name for gpu in GPUS for name in found["environment"]["gpus"] if gpu.name in name), None)
        if found.get("rehearsal") or gpu is None:
            raise InputError(f"{path}: expected a result from an H100 or H200, got {_device(found)}; leave it out")
        facts = found["environment"]
        source = f"{path.name}: {facts['gpus'][0]}, commit {facts['commit']}, {facts['started']}"
        if not any(known.startswith(f"{path.name}: ") for known in self.sources):
            self.sources.append(source)
        for row in found["rows"]:
            if "name" in row and row.get("step_ms"):
                steps.setdefault((gpu, row["name"]), row["step_ms"])
            elif row.get("dtype") == "bf16" and "p50_ms" in row:
                key = (gpu, row["op"], tuple(row["shape"].items()), row["pass"], row["provider"])
                self.kernels[key] = row["graph_ms"] or row["p50_ms"]

    def ms(self, gpu: Gpu, case: Case, pass_: str, provider: str) -> float | None:
        return self.kernels.get((gpu.name, case.op, tuple(case.shape.items()), pass_, provider))


def _results(found: Any) -> list[dict[str, Any]]:
    """The results in a file: of a benchmark one, of a call of the suite those of its benchmarks."""
    if not isinstance(found, dict):
        return []
    several = [result for part in found.get("parts", []) for result in part["results"]] or [found]
    return [one for one in several if isinstance(one, dict) and "rows" in one and "environment" in one]


def _device(found: dict[str, Any]) -> str:
    if found.get("rehearsal"):
        return "a rehearsal"
    return ", ".join(found["environment"]["gpus"]) or "a CPU"


def number(value: float | None, form: str = ".3f", missing: str = "-") -> str:
    return missing if value is None else format(value, form)


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows)] + [""]


def op_rows(gpu: Gpu, measured: Measured) -> Iterator[tuple[str, ...]]:
    for case in cases("cuda"):
        shape = " ".join(f"{key}={value}" for key, value in case.shape.items())
        for pass_ in PASSES:
            ours, eager = ours_ms(case, pass_, gpu), rival_ms(EAGER, case, pass_, gpu, False)
            compiled, least = rival_ms(COMPILED, case, pass_, gpu, True), least_ms(case, pass_, gpu)
            found = [measured.ms(gpu, case, pass_, name) for name in ("triton", "eager", "compiled")]
            yield (
                case.op,
                shape,
                pass_,
                number(least),
                number(ours),
                number(eager),
                number(compiled),
                f"{100 * least / ours:.0f} %",
                *(number(one, ".3f", NOT_MEASURED) for one in found),
            )


def launch_rows(shape: Shape) -> Iterator[tuple[str, ...]]:
    """The launches of one alignment, kernel by kernel."""
    for pass_ in PASSES:
        for launch in launches("alignment", pass_, shape):
            yield (
                pass_,
                launch.name,
                f"{launch.memory_bytes / 1e6:.0f}",
                f"{launch.cache_bytes / 1e6:.0f}",
                f"{launch.flops / 1e9:.1f}",
                *(f"{launch_us(launch, gpu, shape.maps):.0f}" for gpu in GPUS),
            )


def alignment_ms(gpu: Gpu, images: int) -> float:
    """Both layers of CMAAM in a step, forward and backward."""
    layers = [case for case in cases("cuda") if case.op == "alignment" and case.shape["B"] == images]
    layers = [case for case in layers if case.shape["L"] == 162]
    return sum(ours_ms(case, pass_, gpu) for case in layers for pass_ in PASSES)


def step_rows(measured: Measured) -> Iterator[tuple[str, ...]]:
    for step in STEPS:
        cells = [step.name]
        for gpu in GPUS:
            predicted = step_ms(step, gpu.name, gpu.copy_bytes_per_s, alignment_ms(gpu, 96))
            found = measured.steps.get((gpu.name, step.measured_as or ""))
            cells += [f"{predicted:.1f}", number(found, ".1f", NOT_MEASURED)]
        yield tuple(cells)


INTRODUCTION = """# The GPU: predicted, and measured where it says so

**Every figure in a column named "predicted" or "least" is computed, not measured.** "Predicted" is the performance
model's time of our kernels in a CUDA graph, of plain PyTorch without one, and of `torch.compile` in one; it is good to
about 30 per cent. "Least" is what the counted bytes and FLOPs of an op allow at the card's measured rates, and "of the
ceiling" is least / predicted. "Measured" is from the result files named below: in a CUDA graph where one was captured,
otherwise the median of single calls. bf16, milliseconds. It holds for the kernels of the commit that is named with the
file: perf/results/gpu/README.md says which of them have changed since.

How long the alignment's kernels wait for their loads, and how much of the L2 cache's rate they draw, was fitted to
measurements on an H200, of 64 images with L = 162 and C = 2048 (perf/results/gpu/kernel_times.json and
tune_alignment.json). Agreement at that shape is no evidence for the model; at other shapes and on an H100 it is. Some
of the kernels have changed since, and that a warp makes its weights in 3 microseconds is assumed.

| card | copy, TB/s | bf16 product, TFLOP/s | L2 cache, TB/s |
| --- | --- | --- | --- |
{rates}

Made by `python perf/performance_model.py`; `--measured FILE.json` fills the measured columns from results of
`perf/bench_kernels.py` and `perf/bench_train.py`.
"""


def document(measured: Measured) -> str:
    rates = "\n".join(
        f"| {gpu.name} | {gpu.copy_bytes_per_s / 1e12:.1f} | {gpu.product_flops_per_s / 1e12:.0f} "
        f"| {gpu.cache_bytes_per_s / 1e12:.1f}{gpu.cache_note} |"
        for gpu in GPUS
    )
    lines = [INTRODUCTION.format(rates=rates)]
    if measured.sources:
        lines += ["Measured files:", "", *(f"- {source}" for source in measured.sources)]
    else:
        lines += ["No result file was given, so nothing is in the measured columns."]
    lines += ["", "## The whole step", "", "ResNet-50, 96 images of 288x144, bf16, milliseconds.", ""]
    lines += table(
        ("step", *(f"{gpu.name} {kind}" for gpu in GPUS for kind in ("predicted", "measured"))), step_rows(measured)
    )
    lines += ["## The launches of one alignment", "", "64 images, L = 162, C = 2048; microseconds, predicted.", ""]
    head = ("pass", "launch", "MB of memory", "MB of L2", "GFLOP", *(f"{gpu.name} predicted" for gpu in GPUS))
    lines += table(head, launch_rows(shape_of(both_case(64, 162, 2048))))
    head = (
        "op",
        "shape",
        "pass",
        "least",
        "predicted",
        "eager predicted",
        "compiled predicted",
        "of the ceiling",
        "measured",
        "eager measured",
        "compiled measured",
    )
    for gpu in GPUS:
        lines += [f"## Every op on an {gpu.name}", "", *table(head, op_rows(gpu, measured))]
    return "\n".join(lines).rstrip() + "\n"


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=to_path, nargs="+", default=[], metavar="FILE", help="result files of a GPU")
    parser.add_argument("--out", type=to_path, default=OUT, help="default perf/results/kernels_gpu.md")
    args = parser.parse_args(argv)
    try:
        text = document(Measured(args.measured))
    except ValueError as error:
        raise InputError(str(error)) from None
    write_whole(args.out, text)
    print(args.out)
    return 0
