"""What the alignment kernels share: tile sizes, loads of tiles, pairs, norms, and the product of two whole maps.

Each result of a product is computed by one program, in a fixed order, so results are the same every time. Pairs whose
rows are outside the batch read image 0 and return NaN.
Legend: B images, L positions (p of the anchor, s of the target), LP = L rounded up to 16, C channels. Positive
pairs come first; a is the anchor and k the target of a pair.
"""
# mypy: disable-error-code="no-untyped-def"

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.common.launch_kernel import Launch
from kernels.common.sizes import ceil_div, power_of_two


class Tile(NamedTuple):
    """One tuning choice of a product: result columns, elements summed at once, warps and pipeline stages."""

    columns: int
    summed: int
    warps: int
    stages: int
    parts: int = 0  # of the warp: programs that share a pair's channels and keep its weights; 0: they keep none


class Choice(NamedTuple):
    """Tile sizes of one call. A program of a product of maps computes up to `rows` rows (`rows_of`)."""

    rows: int  # at most: 192, 128, 64 or 32
    scores: Tile  # as many columns as rows
    warp: Tile
    quadratic: Tile  # as many rows as columns
    softmax: Tile  # columns: how many whole rows of scores a program of the backward processes
    gram: Tile  # as many rows as columns
    gradient: Tile


def precision(dtype: torch.dtype) -> str:
    """Of float32 products: exact or TF32, as torch.set_float32_matmul_precision sets it; half products ignore it."""
    return "ieee" if dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest" else "tf32"


def padded_length(length: int) -> int:
    """LP: rows of every L x L matrix start at a multiple of 16 elements, so that loads are 16 bytes wide."""
    return (length + 15) // 16 * 16


def rows_of(length: int, most: int) -> tuple[int, int]:
    """The rows of a program as two powers of two (the second may be 0), at most `most` together.

    192 = 128 + 64 wastes less of a map of 162 positions than 256 would, and lets one program own a whole pair.
    """
    if most == 192 and 128 < length <= 192:
        return 128, 64
    return min(max(power_of_two(length), 16), 128, most), 0


@triton.jit
def load_tile(p_x, row, column, rows, columns, stride):
    """x[row, column], 0 outside of rows x columns."""
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    return tl.load(p_x + row[:, None] * stride + column[None, :], mask=inside, other=0.0)


@triton.jit
def store_tile(p_x, row, column, rows, columns, stride, value):
    """x[row, column] = value inside of rows x columns, in the dtype of x."""
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    tl.store(p_x + row[:, None] * stride + column[None, :], value.to(p_x.dtype.element_ty), mask=inside)


@triton.jit
def inverse(norm):
    """1 / |f|; 0 for a vector without a direction."""
    return tl.where(norm > 1e-12, 1.0 / tl.where(norm > 1e-12, norm, 1.0), 0.0)


@triton.jit
def pair_number(i, positives, pairs):
    """The i-th pair to process: an anchor's positive and negative pair follow each other, to use the cache."""
    return tl.where(2 * positives == pairs, i // 2 + i % 2 * positives, i)


@triton.jit
def pair_rows(p_anchor, p_positive, p_negative, n, positives, B):
    """The rows of pair n in the batch as int64, and whether they are in it."""
    i = tl.where(n < positives, n, n - positives)
    a = tl.load(p_anchor + i)
    k = tl.load(p_positive + i, mask=n < positives, other=0) + tl.load(p_negative + i, mask=n >= positives, other=0)
    valid = (a >= 0) & (a < B) & (k >= 0) & (k < B)
    return tl.where(valid, a, 0).to(tl.int64), tl.where(valid, k, 0).to(tl.int64), valid


@triton.jit
def norms_kernel(p_f, p_norm, rows, C, BLOCK_ROW: tl.constexpr, BLOCK_C: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROW + tl.arange(0, BLOCK_ROW)
    total = tl.zeros((BLOCK_ROW,), tl.float32)
    for first in range(0, C, BLOCK_C):
        x = load_tile(p_f, row, first + tl.arange(0, BLOCK_C), rows, C, C).to(tl.float32)
        total += tl.sum(x * x, axis=1)
    tl.store(p_norm + row, tl.sqrt(total), mask=row < rows)


def norms(launch: Launch, features_BLC: torch.Tensor, out_BL: torch.Tensor) -> torch.Tensor:
    """Write the norms to out, float32, and return it."""
    images, length, channels = features_BLC.shape
    launch(
        norms_kernel, (ceil_div(images * length, 4),),
        features_BLC, out_BL, images * length, channels, 4, 256, num_warps=4, enable_fp_fusion=True
    )  # fmt: skip
    return out_BL


@triton.jit
def map_product(
    p_x, p_y, p_low, first_p, first_s, L, C, stride, SPLIT: tl.constexpr, PRECISION: tl.constexpr,
    R0: tl.constexpr, R1: tl.constexpr, BLOCK_C: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """x y^T for R0 + R1 rows of x and as many of y: four tiles (rows 0 | 1 times columns 0 | 1), float32.

    With SPLIT, y is the sum of two half numbers, y and low. With R1 = 0 there is one tile, returned four times.
    """
    p0 = first_p + tl.arange(0, R0)
    s0 = first_s + tl.arange(0, R0)
    acc00 = tl.zeros((R0, R0), tl.float32)
    if R1 > 0:
        p1 = first_p + R0 + tl.arange(0, R1)
        s1 = first_s + R0 + tl.arange(0, R1)
        acc01 = tl.zeros((R0, R1), tl.float32)
        acc10 = tl.zeros((R1, R0), tl.float32)
        acc11 = tl.zeros((R1, R1), tl.float32)
    for first in tl.range(0, C, BLOCK_C, num_stages=STAGES):
        c = first + tl.arange(0, BLOCK_C)
        x0 = load_tile(p_x, p0, c, L, C, stride)
        y0 = tl.trans(load_tile(p_y, s0, c, L, C, stride))
        acc00 = tl.dot(x0, y0, acc00, input_precision=PRECISION)
        if SPLIT:
            low0 = tl.trans(load_tile(p_low, s0, c, L, C, stride))
            acc00 = tl.dot(x0, low0, acc00, input_precision=PRECISION)
        if R1 > 0:
            x1 = load_tile(p_x, p1, c, L, C, stride)
            y1 = tl.trans(load_tile(p_y, s1, c, L, C, stride))
            acc01 = tl.dot(x0, y1, acc01, input_precision=PRECISION)
            acc10 = tl.dot(x1, y0, acc10, input_precision=PRECISION)
            acc11 = tl.dot(x1, y1, acc11, input_precision=PRECISION)
            if SPLIT:
                low1 = tl.trans(load_tile(p_low, s1, c, L, C, stride))
                acc01 = tl.dot(x0, low1, acc01, input_precision=PRECISION)
                acc10 = tl.dot(x1, low0, acc10, input_precision=PRECISION)
                acc11 = tl.dot(x1, low1, acc11, input_precision=PRECISION)
    if R1 > 0:
        return acc00, acc01, acc10, acc11
    else:
        return acc00, acc00, acc00, acc00


@triton.jit
def store_map(p_out, first_p, first_s, L, LP, acc00, acc01, acc10, acc11, R0: tl.constexpr, R1: tl.constexpr):
    """Store the tiles of a `map_product` in rows of LP elements; from column L on they are 0 (NaN in a row of NaN)."""
    p0 = first_p + tl.arange(0, R0)
    s0 = first_s + tl.arange(0, R0)
    store_tile(p_out, p0, s0, L, LP, LP, acc00)
    if R1 > 0:
        p1 = first_p + R0 + tl.arange(0, R1)
        s1 = first_s + R0 + tl.arange(0, R1)
        store_tile(p_out, p0, s1, L, LP, LP, acc01)
        store_tile(p_out, p1, s0, L, LP, LP, acc10)
        store_tile(p_out, p1, s1, L, LP, LP, acc11)
