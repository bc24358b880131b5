"""Whether every op can be captured in a CUDA graph and replays alike: python -m perf.calls.graphs --json FILE

Forward, backward and both are captured by hand on a side stream. The reason is recorded where that fails.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from perf import cases
from perf.calls.rows import RowsFile

Result = list[torch.Tensor]
TOLERANCE = 2e-2  # of the largest number: sums in another order, in bf16


def passes(function: Callable[..., Any], leaves: tuple[torch.Tensor, ...], constants: tuple) -> dict[str, Callable]:
    """Each pass as a function that prepares it (nothing captured) and returns what is to be captured."""

    def forward() -> Result:
        result = function(*leaves, *constants)
        outputs = result if isinstance(result, tuple) else (result,)
        return [output for output in outputs if output.requires_grad]

    def gradients(outputs: Result) -> Result:
        return list(torch.autograd.grad(outputs, leaves, [torch.ones_like(x) for x in outputs], retain_graph=True))

    def prepared_backward() -> Callable[[], Result]:
        outputs = forward()
        return lambda: gradients(outputs)

    return {
        "forward": lambda: forward,
        "backward": prepared_backward,
        "both": lambda: lambda: gradients(forward()),
    }


def replayed(prepare: Callable[[], Callable[[], Result]]) -> tuple[Result, Result]:
    """What the pass gives when it is run, and what a replay of its graph gives."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run = prepare()
        for _ in range(2):  # compiles, and fills caches that may not be filled during a capture
            usual = [tensor.detach().clone() for tensor in run()]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        captured = run()
    graph.replay()
    torch.cuda.synchronize()
    return usual, [tensor.detach().clone() for tensor in captured]


def row_of(case: cases.Case, name: str, prepare: Callable[[], Callable[[], Result]]) -> dict[str, Any]:
    """One op and pass: whether it was captured, and the largest difference relative to the largest number."""
    row = {"op": case.op, "pass": name, "captured": False, "difference": None, "error": None}
    try:
        usual, found = replayed(prepare)
    except (RuntimeError, AssertionError) as error:
        torch.cuda.synchronize()
        return row | {"error": str(error).strip().splitlines()[0][:200]}
    differences = [((f - u).abs().max() / u.abs().max()).item() for f, u in zip(found, usual, strict=True)]
    return row | {"captured": True, "difference": max(differences)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--small", action="store_true", help="sizes for a rehearsal")
    args = parser.parse_args(argv)
    images, length, channels = (4, 9, 16) if args.small else (32, 162, 1024)
    built = (cases.both_case(images, length, channels), cases.gem_pyramid_case(4), cases.ring_aggregate_case(4))
    file = RowsFile(args.json, gpu=torch.cuda.get_device_name(0), tolerance=TOLERANCE)
    for case in built:
        inputs, constants = case.inputs(torch.bfloat16, "cuda")
        leaves = tuple(tensor.requires_grad_() for tensor in inputs)
        for name, prepare in passes(case.ours, leaves, constants).items():
            file.add(**row_of(case, name, prepare))
    file.write(complete=True)
    wrong = [row for row in file.rows if not row["captured"] or not row["difference"] <= TOLERANCE]
    if wrong:
        print(f"{len(wrong)} of {len(file.rows)} passes were not captured or differ by more than {TOLERANCE}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
