"""Tries tile sizes of the alignment kernels on a GPU: python perf/tune_alignment.py [--limit-s S] [--json FILE]

One part of the choice (kernels/alignment/tile_kernel.py) is changed at a time, and everything else has its default. A
row gives the mean time of the kernels that the part belongs to, and the largest error of the op against the definition
in float64. If a choice does not fit the GPU, its row gives the reason.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("perf.tune_alignment")

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from kernels.alignment import kernel
from kernels.alignment.tile_kernel import Choice, Tile
from perf.calls.rows import RowsFile
from perf.parts.cases import BETA, both_case
from perf.parts.fake_gpu import rehearsing
from perf.parts.kernel_times import kernel_times
from perf.parts.passes import ERROR_FLOOR, Work, exact_results, prepare
from perf.parts.timing import reason
from tacaf.command import Parser, entry, to_path
from tacaf.vocabulary import InputError

DEFAULT = kernel.CHOICES[0]
# part of the choice -> (the kernels it belongs to, the values to try besides the default)
PARTS: dict[str, tuple[tuple[str, ...], tuple[Tile, ...]]] = {
    "scores": (("scores_kernel", "products_kernel"), (Tile(0, 64, 8, 2), Tile(0, 32, 8, 4))),
    "warp": (
        # With one part the warp also does what the other two kernels do with several.
        ("weights_kernel", "warp_kernel", "warp_whole_kernel", "finish_kernel"),
        (Tile(64, 64, 8, 3, 4), Tile(64, 64, 8, 3, 1), Tile(32, 64, 4, 3, 4), Tile(64, 64, 4, 3), Tile(128, 64, 8, 3)),
    ),
    "quadratic": (
        ("quadratic_kernel",),
        (Tile(64, 32, 4, 3), Tile(128, 64, 8, 2), Tile(128, 32, 8, 2), Tile(64, 64, 4, 1), Tile(64, 64, 8, 2)),
    ),
    "softmax": (
        ("softmax_kernel",),
        (Tile(8, 0, 1, 1), Tile(16, 0, 2, 1), Tile(4, 0, 1, 1), Tile(16, 0, 4, 1), Tile(4, 0, 2, 1)),
    ),
    "gram": (
        ("gram_gradient_kernel",),
        (Tile(64, 64, 4, 2), Tile(64, 32, 4, 3), Tile(64, 64, 8, 3), Tile(32, 64, 4, 3)),
    ),
    "gradient": (
        ("gradient_kernel",),
        (Tile(128, 64, 8, 3), Tile(256, 64, 8, 3), Tile(64, 64, 4, 4), Tile(128, 32, 8, 4)),
    ),
}


def tuned(choice: Choice, work: Work) -> Callable[[], tuple[torch.Tensor, ...]]:
    """Both passes with this choice, without autograd."""
    (features,), (mask, *rows) = work.leaves, work.constants
    inputs: tuple[Any, ...] = (features.detach(), mask, *rows, BETA, choice)
    grads: tuple[Any, ...] = (work.grads[0].to(features.dtype), *work.grads[1:])

    def both() -> tuple[torch.Tensor, ...]:
        reconstruction, near, far, _, *saved = kernel.forward(*inputs)
        needed = (*grads, *inputs[:-1], reconstruction, *saved, choice)
        return reconstruction, near, far, kernel.backward(*needed)

    return both


def row_of(part: str, choice: Choice, work: Work, exact: list[torch.Tensor]) -> dict[str, Any]:
    """The row of one choice: its error and its time, which is measured only if the result is right."""
    row: dict[str, Any] = {"part": part, "tile": list(getattr(choice, part)), "us": None, "error": None, "reason": None}
    run = tuned(choice, work)
    try:
        found = run()
        if not rehearsing():  # there the kernels are compiled and not launched
            pairs = zip(found, exact, strict=True)
            row["error"] = max(((f.double() - e).abs().max() / e.abs().max()).item() for f, e in pairs)
            if not row["error"] <= 2 * ERROR_FLOOR[work.leaves[0].dtype]:
                return row | {"reason": "wrong result"}
        times = kernel_times(run, "cuda")
    except Exception as error:
        return row | {"reason": reason(error)}
    return row | {"us": sum(time["us"] for time in times if time["kernel"] in PARTS[part][0])}


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=to_path)
    parser.add_argument("--limit-s", type=float, default=300, help="start no new measurement after this many seconds")
    parser.add_argument("--small", action="store_true", help="one part on small maps, for a rehearsal")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise InputError("expected a GPU, found none; perf/compile_report.py shows what compiles")
    until = time.monotonic() + args.limit_s
    images, length, channels = (2, 20, 64) if args.small else (64, 162, 2048)
    case = both_case(images, length, channels)
    work = prepare(case, torch.bfloat16, "cuda")
    exact = exact_results(case, work)
    file = RowsFile(args.json, gpu=torch.cuda.get_device_name(0), shape=case.shape, dtype="bf16")
    parts = {"gram": PARTS["gram"]} if args.small else PARTS
    for part, (_, tiles) in parts.items():
        for tile in (getattr(DEFAULT, part), *tiles):
            if time.monotonic() > until:
                file.add(part=part, tile=list(tile), us=None, error=None, reason="no time left")
                continue
            file.add(**row_of(part, DEFAULT._replace(**{part: tile}), work, exact))
    file.write(complete=True)
    return 0
