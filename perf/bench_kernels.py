"""Times the kernels against plain PyTorch and torch.compile.

    python perf/bench_kernels.py [--op OP] [--dtype bf16] [--device cpu] [--images 64] [--json FILE]
    python perf/bench_kernels.py --check            # every case in every dtype against float64, no figures
    python perf/bench_kernels.py --profile FILE     # names and times of the kernels of one forward and backward
    python perf/bench_kernels.py --rehearse         # the GPU's branches on a CPU, small shapes; figures mean nothing

Every op is first compared with its definition in float64; a case that fails gets no figure, and the exit status is 1.
Bytes and FLOPs are counted by formula (cases.py); the ceilings (copy, matrix product) are measured in the same run. On
a GPU each pass is also replayed from a CUDA graph, which shows how much time the gaps between launches take.
`--device cpu` times the CPU path. A provider that fails becomes a row with the reason. The JSON file is complete and
valid after every row.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # so that it runs in a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tacaf.start import start

if __name__ == "__main__":
    start("perf.bench_kernels")

import argparse
import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch._functorch.config

from perf.parts import timing
from perf.parts.cases import Case, both_case, cases, small_cases
from perf.parts.fake_gpu import fake_gpu, rehearsing
from perf.parts.kernel_times import kernel_times
from perf.parts.machine import peak_resident_mib, resident_mib, restart_peak
from perf.parts.passes import PASSES, Work, WrongResultError, check, passes, prepare
from perf.parts.providers import PROVIDERS, provider, provider_names
from perf.parts.result_file import ResultFile
from tacaf.command import Parser, entry, to_path
from tacaf.provenance import environment
from tacaf.vocabulary import InputError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
OPS = ("alignment", "soft_align", "align_distance", "gem_pyramid", "ring_aggregate", "batch_norm")
COLUMNS = (
    "op",
    "provider",
    "pass",
    "dtype",
    "shape",
    "p20_ms",
    "p50_ms",
    "p80_ms",
    "graph_ms",
    "ratio_to_eager",
    "peak_mib",
    "saved_mib",
    "bytes",
    "flops",
    "share_of_ceiling",
    "graph_error",
    "graph_ratio_to_eager",
    "graph_share_of_ceiling",
)
MIB = timing.MIB
COMPILING_S = {"compiled": 30.0, "autotuned": 120.0}  # estimates, used until the first one has been timed
NO_TIME = "not measured: no time left"


class Bench:
    """One run of the benchmark: its options, the ceilings, when it must end, and the file for its rows."""

    def __init__(self, args: argparse.Namespace, ceiling: dict[str, float], file: ResultFile) -> None:
        self.args, self.ceiling, self.file = args, ceiling, file
        self.dtype, self.device = args.dtype, args.device
        self.end = float("inf") if args.limit_s is None else args.began + args.limit_s
        self.took_s, self.wrong = dict(COMPILING_S), 0

    def no_time(self, name: str) -> bool:
        """Whether this provider would exceed the limit if it took as long as its slowest case so far."""
        return time.monotonic() + self.took_s.get(name, 0.0) > self.end

    def note_time(self, name: str, began: float) -> None:
        self.took_s[name] = max(self.took_s.get(name, 0.0), time.monotonic() - began)

    def add(self, row: dict[str, Any]) -> None:
        self.file.add(**row)
        print(text(row), flush=True)

    def add_wrong(self, case: Case, error: Exception) -> None:
        """Add a row without figures that says why the check failed or could not be made."""
        self.wrong += 1
        said = str(error) if isinstance(error, WrongResultError) else timing.reason(error)
        self.add(self.failed_row(case, shown("ours", self.device), f"check: {said}"))

    def failed_row(self, case: Case, name: str, error: str) -> dict[str, Any]:
        return {"op": case.op, "provider": name, "dtype": self.dtype, "shape": case.shape, "error": error}


def shown(name: str, device: str) -> str:
    """The provider's name in the table; our op is named after the path that was timed."""
    return {"ours": "triton" if device == "cuda" else "cpu path"}.get(name, name)


def run_case(bench: Bench, case: Case, place: int) -> None:
    """Check one case, then add a row for every provider and pass. `place`: the case's number within its op."""
    names = provider_names(case, bench.device, bench.args.providers, bench.args.autotuned_compile)
    if bench.no_time("check"):
        _no_time(bench, case, names)
        return
    began = time.monotonic()
    try:
        work = prepare(case, DTYPES[bench.dtype], bench.device)
        check(case, work)
        bench.note_time("check", began)
    except Exception as error:
        bench.add_wrong(case, error)
        return
    eager: dict[str, dict[str, Any]] = {}
    for name in names:
        if bench.no_time(name):
            _no_time(bench, case, [name])
            continue
        began = time.monotonic()
        run_provider(bench, case, place, work, name, eager)
        bench.note_time(name, began)


def _no_time(bench: Bench, case: Case, names: list[str]) -> None:
    for name in names:
        bench.add(bench.failed_row(case, shown(name, bench.device), NO_TIME))


def run_provider(bench: Bench, case: Case, place: int, work: Work, name: str, eager: dict[str, dict[str, Any]]) -> None:
    """Add the provider's rows and, if it fails, a row with the reason."""
    try:
        # compiled code would otherwise free tensors that a second backward of the same forward needs
        with torch._functorch.config.patch(donated_buffer=False):
            rows = profile_rows if bench.args.profile else measure
            for row in rows(bench, case, place, work, name, eager):
                bench.add(row)
    except Exception as error:
        failed = timing.reason(error)
    else:
        return
    # outside of the handler, because the traceback keeps the provider's tensors alive there
    bench.wrong += name == "ours"
    bench.add(bench.failed_row(case, shown(name, bench.device), failed))
    if bench.device == "cuda":
        with contextlib.suppress(Exception):  # may report the same error again
            torch.cuda.synchronize()
        with contextlib.suppress(Exception):
            torch.cuda.empty_cache()


def measure(
    bench: Bench, case: Case, place: int, work: Work, name: str, eager: dict[str, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """A row for every pass of a provider. `eager` collects plain PyTorch's rows, with which the others are compared."""
    function, device, seconds = provider(case, name), bench.device, bench.args.seconds
    runs, kept = passes(function, work), timing.saved_mib(function, work)
    for which in PASSES:
        p20, p50, p80 = timing.quantiles(timing.time_ms(runs[which], device, seconds))
        graph, graph_error = None, None
        peak = timing.peak_mib(runs[which]) if device == "cuda" else None
        if device == "cuda" and not bench.args.no_graph:
            graph, graph_error = timing.graph_ms(function, work, which, seconds)
        if device == "cpu" and which == "both" and name in ("eager", "ours"):
            peak = cpu_peak_mib(case.op, place, bench.dtype, name)
        row = {
            "op": case.op,
            "provider": shown(name, device),
            "pass": which,
            "dtype": bench.dtype,
            "shape": case.shape,
            "p20_ms": p20,
            "p50_ms": p50,
            "p80_ms": p80,
            "graph_ms": graph,
            "ratio_to_eager": None,
            "peak_mib": peak,
            "saved_mib": kept,
            **least(case, which, work.leaves[0].element_size(), bench.ceiling, p50, graph),
            "graph_error": graph_error,
            "graph_ratio_to_eager": None,
        }
        if name == "eager":
            eager[which] = row
        if which in eager:
            row["ratio_to_eager"] = eager[which]["p50_ms"] / p50
            row["graph_ratio_to_eager"] = (graph and (eager[which]["graph_ms"] or 0.0) / graph) or None
        yield {column: row[column] for column in COLUMNS}


def least(
    case: Case, which: str, element: int, ceiling: dict[str, float], p50_ms: float, graph: float | None
) -> dict[str, float | None]:
    """Counted bytes and FLOPs, and the least time that the ceilings allow as a share of the measured time."""
    parts = PASSES[:2] if which == "both" else (which,)
    moved, flops = sum(case.moved[one](element) for one in parts), sum(case.flops[one] for one in parts)
    least_ms = 1000 * max(moved / ceiling["copy_bytes_per_s"], flops / ceiling["matrix_flops_per_s"])
    return {
        "bytes": moved,
        "flops": flops,
        "share_of_ceiling": least_ms / p50_ms,
        "graph_share_of_ceiling": least_ms / graph if graph else None,
    }


def profile_rows(
    bench: Bench, case: Case, place: int, work: Work, name: str, eager: dict[str, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """A row for every kernel of one forward and backward."""
    run = passes(provider(case, name), work)["both"]
    for row in kernel_times(run, bench.device):
        yield {
            "op": case.op,
            "provider": shown(name, bench.device),
            "dtype": bench.dtype,
            "shape": case.shape,
            **row,
        }


def cpu_peak_mib(op: str, place: int, dtype: str, provider: str) -> float:
    """Peak resident memory of one `both` in a fresh process, above that process's memory before it."""
    command = [sys.executable, __file__, "--device", "cpu", "--op", op, "--dtype", dtype, "--peak-of", provider]
    done = subprocess.run([*command, str(place)], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def print_peak(case: Case, dtype: torch.dtype, name: str) -> None:
    """The part of `cpu_peak_mib` that runs in the child process."""
    work, small = prepare(case, dtype, "cpu"), both_case(2, 9, 8)
    passes(small.ours, prepare(small, dtype, "cpu"))["both"]()  # loads the libraries before the measurement
    restart_peak()
    before = resident_mib()
    passes(getattr(case, name), work)["both"]()
    print(peak_resident_mib() - before)


def text(row: dict[str, Any]) -> str:
    """A row for the terminal."""
    shape = " ".join(f"{key}={value}" for key, value in row["shape"].items())
    start = f"{row['op']:15} {shape:28} {row['dtype']:5} {row['provider']:9}"
    if "error" in row:
        return f"{start} {row['error']}"
    if "kernel" in row:
        return f"{start} {row['us']:10.1f} us  x{row['count']:<5g} {row['kernel'][:90]}"
    if row["pass"] == "check":
        return f"right: {start} largest error {row['largest_error']:.1e}, plain PyTorch's {row['eager_error']:.1e}"
    times = f"{row['pass']:9} {row['p50_ms']:10.3f} ms  graph {_number(row['graph_ms'], '.3f'):>8}"
    return (
        f"{start} {times}  x{_number(row['ratio_to_eager'], '.2f')}  peak {_number(row['peak_mib'], '.0f'):>6} MiB  "
        f"saved {row['saved_mib']:7.1f} MiB  {100 * row['share_of_ceiling']:.0f} % of the ceiling"
        + (f"  (no graph: {row['graph_error']})" if row["graph_error"] else "")
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def run_check(bench: Bench, todo: list[Case], dtypes: list[str]) -> None:
    """Add a row for every case and dtype: the largest error, or what is wrong."""
    for bench.dtype in dtypes:
        for case in todo:
            if bench.no_time("check"):
                _no_time(bench, case, ["ours"])
                continue
            began, name = time.monotonic(), shown("ours", bench.device)
            row: dict[str, Any] = {"op": case.op, "provider": name, "pass": "check", "dtype": bench.dtype}
            try:
                found = check(case, prepare(case, DTYPES[bench.dtype], bench.device))
                bench.add({**row, "shape": case.shape, **found})
            except Exception as problem:
                bench.add_wrong(case, problem)
            bench.note_time("check", began)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", choices=OPS)
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="default bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--device", choices=("cuda", "cpu"))
    parser.add_argument("--images", type=int, help="only cases of this many images")
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, help="what to time; a CPU's default: eager ours")
    parser.add_argument("--autotuned-compile", action="store_true", help="also time max-autotune compilation (minutes)")
    parser.add_argument("--seconds", type=float, default=0.2, help="seconds for which a pass of a provider is timed")
    parser.add_argument("--limit-s", type=float, help="seconds; start nothing that might end after this limit")
    parser.add_argument("--no-graph", action="store_true", help="capture no CUDA graphs")
    parser.add_argument("--json", type=to_path)
    parser.add_argument("--check", action="store_true", help="no figures: every case in every dtype against float64")
    parser.add_argument("--profile", type=to_path, metavar="FILE", help="no figures: the kernels' times, as JSON")
    parser.add_argument("--rehearse", action="store_true", help="a GPU's branches on a CPU with small shapes")
    parser.add_argument("--peak-of", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    args.began = time.monotonic()
    if args.rehearse and torch.cuda.is_available() and not rehearsing():
        raise InputError("--rehearse is for a machine without a GPU, and this one has a GPU; leave it out")
    with fake_gpu() if args.rehearse and not rehearsing() else contextlib.nullcontext():
        args.rehearse = rehearsing()
        args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if args.device == "cuda" and not torch.cuda.is_available():
            raise InputError("expected a GPU for --device cuda, found none; use --device cpu")
        if args.device == "cuda" and os.environ.get("TRITON_INTERPRET") == "1":
            raise InputError("TRITON_INTERPRET=1 is set, so no kernel would run on the GPU; unset it")
        return run(args)


def run(args: argparse.Namespace) -> int:
    """Returns 0, or 1 if our op failed or was wrong, or if the file could not be written."""
    single = args.dtype
    args.dtype = args.dtype or ("bf16" if args.device == "cuda" else "fp32")
    chosen = [case for case in (small_cases() if args.rehearse else cases(args.device)) if args.op in (None, case.op)]
    if args.peak_of:
        print_peak(chosen[int(args.peak_of[1])], DTYPES[args.dtype], args.peak_of[0])
        return 0
    todo = [case for case in chosen if args.images in (None, case.shape["B"])]
    if not todo:
        sizes = ", ".join(map(str, sorted({case.shape["B"] for case in chosen})))
        raise InputError(f"--images: expected one of {sizes}, got {args.images}")
    size = "rehearsal" if args.rehearse else args.device
    ceiling = {} if args.check or args.profile else timing.ceilings(size, DTYPES[args.dtype])
    facts = {
        "environment": environment(1),
        "device": args.device,
        "rehearsal": args.rehearse,
        "ceilings": ceiling,
        "columns": COLUMNS,
    }
    bench = Bench(args, ceiling, ResultFile(args.profile or args.json, **facts))
    if args.check:
        run_check(bench, todo, [single] if single else list(DTYPES))
    else:
        for case in todo:
            run_case(bench, case, [one for one in chosen if one.op == case.op].index(case))
    bench.file.write(complete=not any(row.get("error") == NO_TIME for row in bench.file.rows))
    return 1 if bench.wrong or bench.file.failed else 0
