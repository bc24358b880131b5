"""The GeM pyramid in Triton: one read of the map for all levels, two launches forward and one backward.

The map is cut into stripes that are so fine that every level consists of whole stripes. Forward, a program sums the
powers of one fine stripe in a block of channels, and a second kernel adds up the fine stripes of each pooled stripe and
takes the root. Legend: B images, H x W positions, C channels, N = sum(levels) pooled stripes, F fine stripes.
"""
# mypy: disable-error-code="no-untyped-def, assignment, var-annotated, attr-defined"

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from kernels.common.launch_kernel import Launches
from kernels.common.sizes import ceil_div, power_of_two

Blocks = tuple[int, int, int]  # BLOCK_P positions at once, BLOCK_C channels, warps
Choice = tuple[Blocks, Blocks]  # of the forward's sums and of the backward
# The first is the default. A warp of the sums with 256 channels reads 16 bytes a thread and keeps all positions of a
# channel in one thread, so no sum crosses threads.
CHOICES: tuple[Choice, ...] = (
    ((8, 256, 1), (32, 128, 4)),
    ((4, 256, 1), (32, 64, 4)),
    ((8, 512, 2), (16, 256, 4)),
    ((16, 256, 1), (16, 128, 4)),
)
ROOT_BLOCK, ROOT_WARPS = 512, 2  # channels of a program that takes roots, and its warps
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


@triton.jit
def _member(i_stripe, LEVELS: tl.constexpr, FINE: tl.constexpr, BLOCK_N: tl.constexpr):
    """For each pooled row n, whether it contains the fine stripe, and its level (1 for rows that pad the block)."""
    n = tl.arange(0, BLOCK_N)
    inside = n < 0
    level_N = tl.full((BLOCK_N,), 1, tl.int32)
    start = 0
    for i in tl.static_range(len(LEVELS)):
        here = (n >= start) & (n < start + LEVELS[i])
        inside = inside | (here & (n - start == i_stripe // (FINE // LEVELS[i])))
        level_N = tl.where(here, LEVELS[i], level_N)
        start += LEVELS[i]
    return inside, level_N


@triton.jit
def _power(x, P: tl.constexpr):
    result = x
    for _ in tl.static_range(P - 1):
        result *= x
    return result


@triton.jit
def _root(mean, P: tl.constexpr, GUESS: tl.constexpr):
    """mean^(1/P) of normal positive numbers, from products alone: fewer than half the instructions of log2 and exp2.

    The bits of a float are nearly its logarithm, so GUESS - bits / P are those of mean^(-1/P) to 8 per cent. Newton's
    iteration makes that exact to rounding in three steps, and a last one corrects the root itself.
    """
    root = mean
    if P > 1:
        inverse = (GUESS - mean.to(tl.int32, bitcast=True) // P).to(tl.float32, bitcast=True)
        for _ in tl.static_range(3):
            inverse += inverse * (1.0 - mean * _power(inverse, P)) * (1.0 / P)
        root = mean * _power(inverse, P - 1)
        root += root * (1.0 - root * inverse) * ((P - 1.0) / P)
    return root


@triton.jit
def stripe_sums_kernel(
    p_x, p_sums, channels, blocks, eps, stripe: tl.constexpr, P: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The sum of max(x, eps)^P over the `stripe` positions of a fine stripe: B x F x C."""
    # Neighbours in the launch read neighbouring channels, so that they use the same rows of memory at the same time.
    i_stripe = (tl.program_id(0) // blocks).to(tl.int64)  # of all images
    c = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = c < channels
    b_sum = tl.zeros((BLOCK_C,), tl.float32)
    # A loop that is not unrolled: its instructions are fetched once and stay in the instruction cache.
    for first in range(0, stripe, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        m_p = p[:, None] < stripe
        o_x = (i_stripe * stripe + p[:, None]) * channels + c[None, :]
        x = tl.load(p_x + o_x, mask=m_p & m_c[None, :], other=0.0).to(tl.float32)
        # What is beyond the stripe is 0 and stays 0; a choice for each position is cheaper than one for each number.
        b_sum += tl.sum(_power(tl.maximum(x, tl.where(m_p, eps, 0.0)), P), axis=0)
    tl.store(p_sums + i_stripe * channels + c, b_sum, mask=m_c)


@triton.jit
def roots_kernel(
    p_sums, p_pooled, channels, blocks, positions: tl.constexpr, LEVELS: tl.constexpr, FINE: tl.constexpr,
    N: tl.constexpr, P: tl.constexpr, GUESS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One pooled stripe of one image: the mean over its fine stripes, and its root."""
    row = tl.program_id(0) // blocks  # of all images
    c = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = c < channels
    i_image, n = (row // N).to(tl.int64), row % N
    level, first, start = 1, 0, 0
    for i in tl.static_range(len(LEVELS)):
        here = (n >= start) & (n < start + LEVELS[i])
        level = tl.where(here, LEVELS[i], level)
        first = tl.where(here, (n - start) * (FINE // LEVELS[i]), first)
        start += LEVELS[i]
    b_sum = tl.zeros((BLOCK_C,), tl.float32)
    for i_stripe in range(first, first + FINE // level):
        b_sum += tl.load(p_sums + (i_image * FINE + i_stripe) * channels + c, mask=m_c, other=0.0)
    mean = tl.maximum(b_sum * (level.to(tl.float32) / positions), TINY)
    tl.store(p_pooled + row.to(tl.int64) * channels + c, _root(mean, P, GUESS), mask=m_c)


@triton.jit
def backward_kernel(
    p_grad, p_x, p_pooled, p_dx, channels, eps, positions: tl.constexpr, LEVELS: tl.constexpr, FINE: tl.constexpr,
    N: tl.constexpr, P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    i_image = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = c < channels
    stripe: tl.constexpr = positions // FINE
    n = tl.arange(0, BLOCK_N)
    o_pooled = (i_image * N + n[:, None]) * channels + c[None, :]
    m_pooled = (n[:, None] < N) & m_c[None, :]
    first_rows, level = _member(0, LEVELS, FINE, BLOCK_N)
    b_slope = tl.load(p_grad + o_pooled, mask=m_pooled, other=0.0) * (level.to(tl.float32) / positions)[:, None]
    if P > 1:
        b_slope = b_slope / _power(tl.load(p_pooled + o_pooled, mask=m_pooled, other=1.0), P - 1)
    for i_stripe in range(FINE):
        inside, same = _member(i_stripe, LEVELS, FINE, BLOCK_N)
        slope = tl.sum(tl.where(inside[:, None], b_slope, 0.0), axis=0)
        for first in range(0, stripe, BLOCK_P):
            p = first + tl.arange(0, BLOCK_P)
            m_x = (p[:, None] < stripe) & m_c[None, :]
            o_x = (i_image * positions + i_stripe * stripe + p[:, None]) * channels + c[None, :]
            x = tl.load(p_x + o_x, mask=m_x, other=0.0).to(tl.float32)
            dx = tl.where(x >= eps, slope[None, :], 0.0)
            if P > 1:
                dx = dx * _power(x, P - 1)
            tl.store(p_dx + o_x, dx.to(p_dx.dtype.element_ty), mask=m_x)


def _guess(p: int) -> int:
    """What `_root` subtracts from: 1 + 1 / p times the bits of 1, less what bits miss of a logarithm on average."""
    return int((1 + 1 / p) * (127 - 0.045) * 2**23)


_forward_launches, _backward_launches = Launches(), Launches()


def forward(
    features_BHWC: torch.Tensor, levels: Sequence[int], p: float, eps: float, choice: Choice = CHOICES[0]
) -> torch.Tensor:
    """B x N x C float32."""
    (images, height, width, channels), features = features_BHWC.shape, features_BHWC.contiguous()
    fine, rows, positions = math.lcm(*levels), sum(levels), height * width
    sums_BFC = features_BHWC.new_empty(images, fine, channels, dtype=torch.float32)
    pooled_BNC = features_BHWC.new_empty(images, rows, channels, dtype=torch.float32)
    block_p, block_c, warps = choice[0]
    blocks, root_blocks = ceil_div(channels, block_c), ceil_div(channels, ROOT_BLOCK)
    if images:
        launch = _forward_launches.of((features.shape, tuple(levels), p, choice), features)
        launch(
            stripe_sums_kernel, (images * fine * blocks,),
            features, sums_BFC, channels, blocks, eps, positions // fine, int(p), block_p, block_c,
            num_warps=warps, enable_fp_fusion=True,
        )  # fmt: skip
        launch(
            roots_kernel, (images * rows * root_blocks,),
            sums_BFC, pooled_BNC, channels, root_blocks, positions, tuple(levels), fine, rows, int(p), _guess(int(p)),
            ROOT_BLOCK, num_warps=ROOT_WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return pooled_BNC


def backward(
    grad_BNC: torch.Tensor,
    features_BHWC: torch.Tensor,
    pooled_BNC: torch.Tensor,
    levels: Sequence[int],
    p: float,
    eps: float,
    choice: Choice = CHOICES[0],
) -> torch.Tensor:
    """B x H x W x C in the map's dtype."""
    images, height, width, channels = features_BHWC.shape
    gradient = torch.empty_like(features_BHWC, memory_format=torch.contiguous_format)
    block_p, block_c, warps = choice[1]
    if images:
        given = grad_BNC.contiguous(), features_BHWC.contiguous(), pooled_BNC
        launch = _backward_launches.of((features_BHWC.shape, tuple(levels), p, choice), *given)
        launch(
            backward_kernel, (images, ceil_div(channels, block_c)),
            *given, gradient, channels, eps, height * width,
            tuple(levels), math.lcm(*levels), sum(levels), int(p), power_of_two(sum(levels)), block_p,
            block_c, num_warps=warps, enable_fp_fusion=True,
        )  # fmt: skip
    return gradient
