"""Checks that every op can be captured in a CUDA graph and replayed: python -m perf.calls.graphs --json FILE

Forward, backward and both are captured on a side stream. If that fails, the reason is recorded.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch

from perf.calls.rows import RowsFile
from perf.parts import cases
from perf.parts.passes import PASSES, Work, passes, prepare
from perf.parts.timing import abandon, reason
from tacaf.command import Parser, entry, to_path

Result = list[torch.Tensor]
TOLERANCE = 2e-2  # of the largest number, because sums in bf16 may be in another order


def tensors(result: Any) -> Result:
    """A pass's tensors as a list."""
    return [tensor.detach() for tensor in (result if isinstance(result, tuple | list) else (result,))]


def replayed(case: cases.Case, work: Work, name: str) -> tuple[Result, Result]:
    """The results of a pass when it is run, and when its graph is replayed.

    The leaves are used first on the stream of the capture, because autograd waits for the stream of their first use.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        leaves = tuple(leaf.detach().requires_grad_() for leaf in work.leaves)
        run = passes(case.ours, work._replace(leaves=leaves))[name]
        for _ in range(2):  # compiles, and fills caches that may not be filled during a capture
            usual = [tensor.clone() for tensor in tensors(run())]
    torch.cuda.synchronize()
    graph, pool, before = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, pool=pool, stream=side):
            captured = tensors(run())
    except Exception:
        abandon(pool, before)
        raise
    graph.replay()
    torch.cuda.synchronize()
    return usual, captured


def row_of(case: cases.Case, work: Work, name: str) -> dict[str, Any]:
    """One op and pass: whether it was captured, and the largest difference relative to the largest number."""
    row = {"op": case.op, "pass": name, "captured": False, "difference": None, "error": None}
    try:
        usual, found = replayed(case, work, name)
    except Exception as error:
        return row | {"error": reason(error.__context__ or error)}
    differences = [((f - u).abs().max() / u.abs().max()).item() for f, u in zip(found, usual, strict=True)]
    return row | {"captured": True, "difference": max(differences)}


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=to_path)
    parser.add_argument("--small", action="store_true", help="sizes for a rehearsal")
    args = parser.parse_args(argv)
    images, length, channels = (4, 9, 16) if args.small else (32, 162, 1024)
    built = (cases.both_case(images, length, channels), cases.gem_pyramid_case(4), cases.ring_aggregate_case(4))
    file = RowsFile(args.json, gpu=torch.cuda.get_device_name(0), tolerance=TOLERANCE)
    for case in built:
        work = prepare(case, torch.bfloat16, "cuda")
        for name in PASSES:
            file.add(**row_of(case, work, name))
    file.write(complete=True)
    wrong = [row for row in file.rows if not row["captured"] or not row["difference"] <= TOLERANCE]
    if wrong:
        print(f"{len(wrong)} of {len(file.rows)} passes were not captured or differ by more than {TOLERANCE}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(None))
