"""Everything a GPU can tell, in calls of a few minutes: python perf/gpu_suite.py --out DIR [--call N] [--rehearse]

Call 1 is about correctness and ceilings, call 2 about kernels and tuning, call 3 about the training step, call 4 about
data on the GPU and a training to a score. Without --call they run in that order. Each ends inside its limit, can be
repeated alone, leaves DIR/call_N with a JSON file that every part writes after each row, and prints its table last. A
part that fails or is stopped never loses another's results, and what a part lacks (a package, a program) is said in
its line. `--needs N` lists what call N wants to have beside PyTorch and Triton; perf/gather_gpu_needs.py gathers it.
`--rehearse` runs the same on a CPU with a fake GPU and tiny shapes: its figures mean nothing.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from perf.calls.cache import cache_variables, compiled_kernels, take_gathered, work_folder
from perf.calls.child import surroundings
from perf.calls.machine import machine
from perf.calls.needs import listing
from perf.calls.plan import CALLS
from perf.calls.run import run_call
from perf.calls.tables import markdown, of_call
from tacaf.checkpoint import write_whole

BAD = ("failed", "stopped")


class Summary:
    """The two summary files of a call, written again after every part."""

    def __init__(self, number: int, out: Path, facts: dict[str, Any]) -> None:
        self.out, self.broken = out, False
        self.content: dict[str, Any] = {
            "call": number, "purpose": CALLS[number].purpose, "limit_s": CALLS[number].limit_s, "complete": False,
            "machine": facts, "parts": [],
        }  # fmt: skip

    def add(self, part: dict[str, Any]) -> None:
        self.content["parts"].append(part)
        print(f"{part['part']:16} {part['state']} ({part['seconds']} s)", flush=True)
        self.write()

    def write(self) -> None:
        """A disk that is full costs the files and not the call: its table is printed all the same."""
        try:
            write_whole(self.out / "summary.json", json.dumps(self.content, indent=1) + "\n")
            write_whole(self.out / "summary.md", markdown(self.content, self.out))
        except OSError as error:
            if not self.broken:
                print(f"error: {self.out} cannot be written: {error.strerror}; what was written stays", file=sys.stderr)
            self.broken = True

    def failed(self) -> bool:
        return self.broken or any(part["state"].startswith(BAD) for part in self.content["parts"])


def run(number: int, out: Path, rehearse: bool) -> bool:
    """One call; whether everything in it that was measured is right."""
    folder = out / f"call_{number}"
    folder.mkdir(parents=True, exist_ok=True)
    with surroundings(rehearse):
        facts = machine()
    variables = cache_variables(folder / "cache" if rehearse else None)
    cache = Path(variables["TRITON_CACHE_DIR"])
    taken = take_gathered(cache)
    before = compiled_kernels(cache)
    facts["kernels_in_cache"] = {"at_the_start": len(before), "gathered_ahead": taken}
    call = CALLS[number]
    print(f"call {number}: {call.purpose}, at most {call.limit_s:.0f} s, on {facts['gpu']}", flush=True)
    summary = Summary(number, folder, facts)
    for part in run_call(call, folder, variables, rehearse):
        summary.add(part)
    summary.content["complete"] = True
    facts["kernels_in_cache"]["compiled"] = len(compiled_kernels(cache) - before)
    summary.write()
    print(f"\n{of_call(summary.content, folder)}", flush=True)
    return not summary.failed()


def remark_on_order(number: int, out: Path, rehearse: bool) -> None:
    """Say so when correctness has not been shown first, here or on this machine."""
    marker = work_folder() / "call_1_has_run"
    if number == 1 and not rehearse:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    elif number > 1 and not (marker.exists() or (out / "call_1" / "summary.json").exists()):
        print(f"call {number} without call 1: the kernels have not been checked on this GPU yet", flush=True)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument("--call", type=int, choices=sorted(CALLS), help="one call; default: all in order")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with a fake GPU and tiny shapes")
    parser.add_argument("--needs", type=int, choices=sorted(CALLS), metavar="N", help="list what call N needs, and end")
    args = parser.parse_args(argv)
    if args.out is None and args.needs is None:
        parser.error("expected --out DIR, a folder for the results")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if args.needs is not None:
        print(listing(args.needs))
        return 0
    if not args.rehearse and not torch.cuda.is_available():
        print("error: expected a GPU, found none; --rehearse runs the same on a CPU with a fake one", file=sys.stderr)
        return 2
    if args.rehearse and torch.cuda.is_available():
        print("error: expected no GPU for --rehearse, found one; leave --rehearse out", file=sys.stderr)
        return 2
    out = args.out.resolve()
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / "writable", "")
        (out / "writable").unlink()
    except OSError as error:
        print(f"error: {args.out} cannot be written: {error.strerror}; give another --out", file=sys.stderr)
        return 2
    numbers = [args.call] if args.call else sorted(CALLS)
    right = []
    for number in numbers:
        remark_on_order(number, out, args.rehearse)
        right.append(run(number, out, args.rehearse))
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
