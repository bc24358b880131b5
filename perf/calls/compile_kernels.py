"""Compiles the kernels of the real shapes for later parts: python -m perf.calls.compile_kernels --json FILE

The launches of the ops at the benchmark's shapes are intercepted and compiled into TRITON_CACHE_DIR, in as many
processes as there are cores. Kernels from a cache that was gathered on a CPU count as hits.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from multiprocessing import get_context
from typing import Any

import torch
import triton

from perf.calls.child import surroundings
from perf.calls.rows import RowsFile
from perf.compile_report import DTYPES, OPS, caught
from tacaf.command import Parser, entry, to_path

Task = tuple[str, str, int]  # op, dtype, number of the share of its launches
SHARES = 3  # of an op's launches in one dtype, so that several processes compile a large op


def compile_share(op: str, dtype: str, share: int, shares: int) -> dict[str, Any]:
    """Compile one share of the launches of an op with its default tuning. Returns a row."""
    began = time.monotonic()
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    launch, choices = OPS[op]
    choice = choices(DTYPES[dtype], 10 * torch.cuda.get_device_capability()[0])[0]
    launches = caught(lambda: launch(DTYPES[dtype], choice))[share::shares]
    row: dict[str, Any] = {
        "op": op,
        "dtype": dtype,
        "launches": len(launches),
        "in_cache": 0,
        "seconds": 0.0,
        "error": None,
    }

    def listen(*, cache_hit: bool, **_: Any) -> None:
        row["in_cache"] += cache_hit

    triton.knobs.compilation.listener = listen
    try:
        for kernel, args, options in launches:
            kernel.run(*args, grid=(1,), warmup=True, **options)
    except Exception as error:  # a kernel that does not compile must not end this part; later parts will report it
        row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    finally:
        triton.knobs.compilation.listener = None
    return row | {"seconds": round(time.monotonic() - began, 1)}


def _share(words: tuple[str, str, int, int, bool]) -> dict[str, Any]:
    """`compile_share` in a fresh process, which has to enter the fake GPU itself."""
    op, dtype, share, shares, fake = words
    with surroundings(fake):
        return compile_share(op, dtype, share, shares)


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=to_path)
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=["bf16", "fp16", "fp32"])
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: one for each core")
    parser.add_argument("--fake-gpu", action="store_true", help="compile for an H100 on a machine without a GPU")
    parser.add_argument("--small", action="store_true", help="one op in one dtype, in this process, for a rehearsal")
    args = parser.parse_args(argv)
    began = time.monotonic()
    file = RowsFile(args.json)
    if args.small:
        file.add(**compile_share("gem_pyramid", "bf16", 0, 1))
    else:
        tasks = [(op, dtype, k, SHARES, args.fake_gpu) for op in OPS for dtype in args.dtype for k in range(SHARES)]
        with get_context("spawn").Pool(args.processes) as pool:
            for row in pool.imap_unordered(_share, tasks):
                file.add(**row)
    launches, found = (sum(row[name] for row in file.rows) for name in ("launches", "in_cache"))
    file.facts |= {"launches": launches, "in_cache": found, "seconds": round(time.monotonic() - began, 1)}
    file.write(complete=True)
    print(f"{found} of {launches} launches were in the cache, the others were compiled")
    return 0


if __name__ == "__main__":
    sys.exit(main(None))
