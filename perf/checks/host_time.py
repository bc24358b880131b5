"""Measures how long the host needs for a forward and a backward of each op of the kernels, with a fake GPU driver.

    python perf/checks/host_time.py [--rounds 15] [--calls 40] [--json FILE]

Triton compiles for an H100, and the driver launches nothing, so no GPU is needed: what is left is the work of Python,
PyTorch and Triton before a launch. A real driver adds some microseconds to each. Every op is called alternately with
remembered launches (kernels/common/launch_kernel.py) and with Triton's own launcher, on one thread; the figure is the
median over the rounds. Allocations are those of a CPU.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("perf.checks.host_time")

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch

from kernels.alignment import op as alignment
from kernels.batch_norm import op as batch_norm
from kernels.common.launch_kernel import triton_launches
from kernels.gem_pyramid import op as gem_pyramid
from kernels.ring_aggregate import op as ring_aggregate
from perf.parts.fake_triton import fake_triton_driver
from tacaf.command import Parser, entry, to_path
from tacaf.files import write_json
from tacaf.provenance import environment
from tacaf.vocabulary import InputError

OPS = (alignment, batch_norm, gem_pyramid, ring_aggregate)
WARM_UP = 20


def _triton(*_: Any) -> str:
    return "triton"  # a mock would take longer than some of what is measured


@contextlib.contextmanager
def triton_on_cpu_tensors() -> Iterator[None]:
    """Within the block, every op takes its Triton path, which compiles and launches nothing that has an effect."""
    with contextlib.ExitStack() as stack:
        for op in OPS:
            stack.enter_context(mock.patch.object(op, "choose_path", _triton))
        stack.enter_context(fake_triton_driver())
        yield


def _calls() -> dict[str, Callable[[], None]]:
    """Op to one forward and backward of it. The sizes are small, because the host's time does not depend on them."""
    images, length, channels = 4, 162, 128
    features = torch.zeros(images, length, channels, dtype=torch.bfloat16).requires_grad_()
    mask, rows = torch.rand(images, length), torch.arange(images)
    map_BHWC = torch.zeros(images, 18, 9, channels, dtype=torch.bfloat16).requires_grad_()
    parts, theta, phi = (torch.zeros(images, 6, width, dtype=torch.bfloat16).requires_grad_() for width in (64, 32, 32))
    weight, bias = torch.ones(channels).requires_grad_(), torch.zeros(channels).requires_grad_()

    def both_passes(forward: Callable[[], Any], given: Callable[[Any], list[torch.Tensor]]) -> Callable[[], None]:
        gradients = [torch.ones_like(output) for output in given(forward())]
        return lambda: torch.autograd.backward(given(forward()), gradients)

    pairs = (rows, (rows + 1) % images, (rows + 2) % images)
    return {
        "align": both_passes(lambda: alignment.align(features, mask, *pairs, 50.0), lambda found: list(found[:3])),
        "gem_pyramid": both_passes(lambda: gem_pyramid.gem_pyramid(map_BHWC, (1, 3, 6), 3.0, 1e-6), lambda y: [y]),
        "ring_aggregate": both_passes(lambda: ring_aggregate.ring_aggregate(parts, theta, phi, 2), lambda y: [y]),
        "batch_norm_relu": both_passes(
            lambda: batch_norm.batch_norm_relu(map_BHWC, weight, bias, 1e-5), lambda found: [found[0]]
        ),
    }


def measure(rounds: int, calls: int) -> list[dict[str, Any]]:
    """A row for each op: microseconds of this thread for one forward and backward, both ways."""
    rows = []
    for op, call in _calls().items():
        times: dict[str, list[float]] = {"remembered": [], "triton": []}
        for i in range(-1, rounds):
            for name, way in (("remembered", contextlib.nullcontext), ("triton", triton_launches)):
                with way():
                    begun = time.thread_time()
                    for _ in range(calls if i >= 0 else WARM_UP):
                        call()
                    if i >= 0:
                        times[name].append((time.thread_time() - begun) / calls * 1e6)
        rows.append({"op": op, **{f"{name}_us": statistics.median(found) for name, found in times.items()}})
    return rows


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="how often each way is timed (default: 15)")
    parser.add_argument("--calls", type=int, default=40, help="calls that are timed together (default: 40)")
    parser.add_argument("--json", type=to_path, help="also write the result there")
    args = parser.parse_args(argv)
    for name in ("rounds", "calls"):
        if getattr(args, name) < 1:
            raise InputError(f"expected at least 1 in --{name}, got {getattr(args, name)}; raise it")
    torch.set_num_threads(1)
    with triton_on_cpu_tensors():
        rows = measure(args.rounds, args.calls)
    if args.json:
        write_json(args.json, {"environment": environment(1), "rounds": args.rounds, "calls": args.calls, "rows": rows})
    print(f"{'op':16} {'own launcher, us':>18} {'remembered, us':>16}")
    for row in rows:
        print(f"{row['op']:16} {row['triton_us']:18.0f} {row['remembered_us']:16.0f}")
    return 0
