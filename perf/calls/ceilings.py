"""Measures the GPU's highest rates: python -m perf.calls.ceilings --json FILE

A copy in its memory, a large matrix product, repeated reads of 20 MB from its L2 cache, and cuBLAS on the batched
products of the alignment, with rows of 162 numbers as they are and padded to a multiple of 16 bytes.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from perf.calls.rows import RowsFile
from perf.calls.timing import median_ms
from tacaf.command import Parser, entry, to_path

BLOCK = 4096  # numbers of four bytes that a program reads at once


@triton.jit
def read_kernel(source_ptr, target_ptr, blocks, rounds, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Every program reads `rounds` blocks, starting at a place of its own, and stores their sum."""
    program = tl.program_id(0)
    total = tl.zeros([BLOCK], tl.int32)
    for i in range(rounds):
        block = (program * 37 + i) % blocks
        total += tl.load(source_ptr + block * BLOCK + tl.arange(0, BLOCK), cache_modifier=".cg")
    tl.store(target_ptr + program, tl.sum(total, 0))


def copy(size: int) -> dict[str, Any]:
    """Bytes per second of a copy, reads and writes together."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    ms = median_ms(lambda: target.copy_(source))
    return {"what": "copy", "shape": f"{size // 2**20} MiB", "ms": ms, "TB_per_s": 2 * size / ms / 1e9}


def product(side: int) -> dict[str, Any]:
    """FLOPs per second of a square product in bf16."""
    left, right = (torch.randn(side, side, device="cuda").bfloat16() for _ in range(2))
    ms = median_ms(lambda: left @ right)
    return {"what": "product bf16", "shape": f"{side}^3", "ms": ms, "TFLOP_per_s": 2 * side**3 / ms / 1e9}


def cache_reads(size: int) -> dict[str, Any]:
    """Bytes per second that all multiprocessors together read of a tensor that fits into the L2 cache."""
    blocks, programs, rounds = size // (4 * BLOCK), 8 * torch.cuda.get_device_properties(0).multi_processor_count, 64
    source = torch.ones(blocks * BLOCK, dtype=torch.int32, device="cuda")
    target = torch.empty(programs, dtype=torch.int32, device="cuda")
    ms = median_ms(lambda: read_kernel[(programs,)](source, target, blocks, rounds, BLOCK, num_warps=8))
    total = 4 * BLOCK * programs * rounds
    return {"what": "second-level cache", "shape": f"{size // 10**6} MB", "ms": ms, "TB_per_s": total / ms / 1e9}


def batched(images: int, length: int, channels: int, row: int) -> dict[str, Any]:
    """cuBLAS on P (B, L, L) times f (B, L, C) in bf16, where the rows of P are `row` numbers apart."""
    weights = torch.rand(images, length, row, device="cuda").bfloat16()[..., :length]
    features = torch.randn(images, length, channels, device="cuda").bfloat16()
    found = torch.empty(images, length, channels, device="cuda", dtype=torch.bfloat16)
    ms = median_ms(lambda: torch.bmm(weights, features, out=found))
    flops, shape = 2 * images * length**2 * channels, f"{images} x {length}x{length}x{channels}, rows of {row}"
    return {"what": "batched product bf16", "shape": shape, "ms": ms, "TFLOP_per_s": flops / ms / 1e9}


def measurements(small: bool) -> Iterator[Callable[[], dict[str, Any]]]:
    """All measurements, or the same with small sizes for a rehearsal."""
    yield functools.partial(copy, 2**20 if small else 2**30)
    yield functools.partial(product, 64 if small else 8192)
    yield functools.partial(cache_reads, 4 * BLOCK * 4 if small else 20_000_000)
    images, length, channels = (2, 10, 16) if small else (64, 162, 2048)
    for row in (10, 16) if small else (162, 168, 176):
        yield functools.partial(batched, images, length, channels, row)


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=to_path)
    parser.add_argument("--small", action="store_true", help="sizes for a rehearsal")
    args = parser.parse_args(argv)
    file = RowsFile(args.json, gpu=torch.cuda.get_device_name(0))
    for measure in measurements(args.small):
        file.add(**measure())
    file.write(complete=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(None))
