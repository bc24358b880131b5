"""Runs all measurements on a GPU, in calls of a few minutes: python perf/gpu_suite.py --out DIR [--call N] [--rehearse]

Call 1 is about correctness, ceilings and two ops, call 2 about all kernels and tuning, call 3 about the training step,
call 4 about data on the GPU and a training to a score. Without --call they run in that order; if time is short, leave
out call 2: the others take 20 minutes at most. Each ends within its limit, can be repeated alone, and prints its table
at the end. It writes DIR/call_N.json with every row, as the rows are measured, and DIR/call_N.md to read. If a part
fails or is stopped, no other part loses its results; if it lacks a package or a program, its line says so.

`--needs N` lists what call N needs besides PyTorch and Triton; perf/gather_gpu_needs.py gathers it. `--unpack FILE`
splits a call_N.json into the result files of its parts. `--rehearse` runs the same on a CPU with a fake GPU and tiny
shapes: its figures mean nothing.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # so that it runs in a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tacaf.start import start

if __name__ == "__main__":
    start("perf.gpu_suite")

import argparse
import os
import shutil
from collections.abc import Sequence

import torch

from perf.calls.cache import cache_variables, compiled_kernels, take_gathered, work_folder
from perf.calls.child import surroundings
from perf.calls.machine import machine
from perf.calls.needs import listing
from perf.calls.plan import CALLS
from perf.calls.run import Place, run_call
from perf.calls.summary import Summary, unpack
from tacaf.command import Parser, entry, to_path
from tacaf.files import write_whole
from tacaf.vocabulary import InputError


def run(number: int, out: Path, work: Path, rehearse: bool) -> bool:
    """Run one call. Returns whether nothing in it failed."""
    call, parts = CALLS[number], work / f"call_{number}"
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True)
    with surroundings(rehearse):
        facts = machine()
    variables = cache_variables(work)
    cache = Path(variables["TRITON_CACHE_DIR"])
    taken, before = take_gathered(cache), compiled_kernels(cache)
    facts["kernels_in_cache"] = {"at_the_start": len(before), "gathered_ahead": taken}
    print(f"call {number}: {call.purpose}, at most {call.limit_s:.0f} s, on {facts['gpu']}", flush=True)
    summary = Summary(number, out, parts, facts)
    for part in run_call(call, Place(parts, variables, rehearse, summary.running)):
        summary.add(part)
    facts["kernels_in_cache"]["compiled"] = len(compiled_kernels(cache) - before)
    summary.end()
    return summary.right


def say_what_is_unproven(number: int, out: Path, work: Path) -> None:
    """Print a line if call 1 has not been run before, neither for these results nor on this machine."""
    if number > 1 and not (work / "call_1").exists() and not (out / "call_1.json").exists():
        print(f"call {number} without call 1: the kernels have not been checked on this GPU yet", flush=True)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=to_path, metavar="DIR", help="folder for the results")
    parser.add_argument("--call", type=int, choices=sorted(CALLS), help="one call; default: all in order")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with a fake GPU and tiny shapes")
    parser.add_argument("--needs", type=int, choices=sorted(CALLS), metavar="N", help="list what call N needs, and end")
    parser.add_argument(
        "--unpack", type=to_path, metavar="FILE", help="write the parts' files of a call_N.json to --out"
    )
    parser.add_argument(
        "--work",
        type=to_path,
        default=work_folder(),
        metavar="DIR",
        help="caches and the parts' own files (%(default)s)",
    )
    args = parser.parse_args(argv)
    if args.out is None and args.needs is None:
        parser.error("expected --out DIR, a folder for the results")
    return args


def problem_with(args: argparse.Namespace) -> str | None:
    """Why the suite cannot run here, or None if it can."""
    if not args.rehearse and not torch.cuda.is_available():
        return "this machine has no GPU; --rehearse runs the same on a CPU with a fake GPU"
    if args.rehearse and torch.cuda.is_available():
        return "--rehearse is for a machine without a GPU, and this one has a GPU; leave it out"
    for folder in (args.out, args.work):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f"writable-{os.getpid()}"
            write_whole(probe, "")
            probe.unlink()
        except OSError as error:
            return f"{folder} cannot be written: {error.strerror}; give another folder"
    return None


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if args.needs is not None:
        print(listing(args.needs))
        return 0
    if args.unpack:
        print("\n".join(map(str, unpack(args.unpack, args.out))))
        return 0
    if problem := problem_with(args):
        raise InputError(problem)
    out, work = args.out.resolve(), args.work.resolve()
    right = []
    for number in [args.call] if args.call else sorted(CALLS):
        say_what_is_unproven(number, out, work)
        right.append(run(number, out, work, args.rehearse))
    return 0 if all(right) else 1
