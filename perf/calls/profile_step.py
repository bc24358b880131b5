"""Profiles a training step with PyTorch's profiler: python -m perf.calls.profile_step --json FILE

The kernels that take the most time, the share of time in which the GPU is busy, its longest gaps, and how often the
host waits for the device.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, supported_activities

from perf.bench_train import VARIANTS
from perf.calls.plan import FAST
from perf.calls.rows import RowsFile
from perf.parts.train_step import Step, batch
from tacaf.command import Parser, entry, to_path

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
KERNELS_SHOWN, GAPS_SHOWN = 25, 10


class Kernel(NamedTuple):
    """One thing that the GPU did, in microseconds."""

    name: str
    start: float
    end: float


def busy_us(kernels: Sequence[Kernel]) -> tuple[float, list[float]]:
    """Microseconds in which at least one kernel ran, and the gaps between kernels, the longest first."""
    busy, gaps, last = 0.0, list[float](), None
    for kernel in sorted(kernels, key=lambda kernel: kernel.start):
        begin = kernel.start if last is None else max(kernel.start, last)
        if last is not None and kernel.start > last:
            gaps.append(kernel.start - last)
        busy += max(0.0, kernel.end - begin)
        last = kernel.end if last is None else max(last, kernel.end)
    return busy, sorted(gaps, reverse=True)


def summary(kernels: Sequence[Kernel], host_calls: Iterable[str], steps: int) -> dict[str, Any]:
    """Figures of one step, from the events of several."""
    busy, gaps = busy_us(kernels)
    span = max(kernel.end for kernel in kernels) - min(kernel.start for kernel in kernels)
    return {
        "step_ms": span / steps / 1000,
        "busy_share": busy / span,
        "kernels": len(kernels) / steps,
        "host_waits": sum(name in WAITS for name in host_calls) / steps,
        "longest_gaps_us": gaps[:GAPS_SHOWN],
    }


def longest(kernels: Sequence[Kernel], steps: int) -> list[dict[str, Any]]:
    """A row for each of the kernels that take the most time of a step."""
    times, calls = defaultdict[str, float](float), defaultdict[str, int](int)
    for kernel in kernels:
        times[kernel.name] += kernel.end - kernel.start
        calls[kernel.name] += 1
    names = sorted(times, key=times.__getitem__, reverse=True)[:KERNELS_SHOWN]
    return [{"kernel": name[:90], "us": times[name] / steps, "calls": calls[name] / steps} for name in names]


def profiled(step: Step, steps: int) -> tuple[list[Kernel], list[str]]:
    """The GPU's kernels in this number of steps, and the names of the host's calls.

    In a rehearsal PyTorch's operators take the place of the GPU's kernels.
    """
    for _ in range(3):
        step.run()
    torch.cuda.synchronize()
    possible = {ProfilerActivity.CPU, ProfilerActivity.CUDA} & supported_activities()
    with profile(activities=possible, acc_events=True) as prof:
        for _ in range(steps):
            step.run()
        torch.cuda.synchronize()
    on_device, on_host = list[Kernel](), list[str]()
    for event in prof.events():
        if event.is_user_annotation:  # not a kernel: the GPU's time in a named block of the host, including gaps
            continue
        if event.device_type == (DeviceType.CUDA if ProfilerActivity.CUDA in possible else DeviceType.CPU):
            on_device.append(Kernel(event.name, event.time_range.start, event.time_range.end))
        else:
            on_host.append(event.name)
    return on_device, on_host


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=to_path)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="the demo's model, for a rehearsal")
    args = parser.parse_args(argv)
    variant = next(variant for variant in VARIANTS if variant.name == FAST)
    size, groups = ((96, 48), 1) if args.small else ((288, 144), 4)
    step = Step(variant, batch("cuda", groups, *size), "cuda", args.small, not args.small)
    kernels, host_calls = profiled(step, args.steps)
    file = RowsFile(args.json, variant=variant.name, steps=args.steps)
    if not kernels:
        raise SystemExit("the profiler saw no kernel on the GPU; is CUPTI installed?")
    file.facts |= summary(kernels, host_calls, args.steps)
    for row in longest(kernels, args.steps):
        file.add(**row)
    file.write(complete=True)
    print("  ".join(f"{key}={file.facts[key]:.4g}" for key in ("step_ms", "busy_share", "kernels", "host_waits")))
    return 0


if __name__ == "__main__":
    sys.exit(main(None))
