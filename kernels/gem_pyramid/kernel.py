"""The GeM pyramid in Triton: one read of the map for all levels, one launch each way.

A program processes one image and BLOCK_C channels. It reads the map from top to bottom in stripes that are so fine that
every level consists of whole stripes. Legend: B images, H x W positions, C channels, N = sum(levels) pooled stripes.
"""
# mypy: disable-error-code="no-untyped-def, assignment, var-annotated"

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

Blocks = tuple[int, int, int]  # BLOCK_P positions at once, BLOCK_C channels, warps
Choice = tuple[Blocks, Blocks]  # of the forward and of the backward
SUMS_A_THREAD = 48  # the most that the forward keeps in registers; with more, the values that it loads ahead spill
# The first is the default. A warp with 256 channels keeps all positions of a channel in one thread, so no sum crosses
# threads. An earlier forward summed across warps after every stripe and took about four times as long as its reads
# predict on an H200 (59 us instead of 13 for 64 images). This one has not been timed on a GPU.
CHOICES: tuple[Choice, ...] = (
    ((16, 256, 1), (32, 128, 4)),
    ((8, 256, 1), (32, 64, 4)),
    ((8, 512, 2), (16, 256, 4)),
    ((8, 1024, 4), (16, 128, 4)),
)


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
def _root(mean, P: tl.constexpr):
    """mean^(1/P). exp2(log2 / P) is a few units off in the last place; one Newton step on y^P = mean corrects that."""
    root = tl.exp2(tl.log2(mean) / P)
    if P > 1:
        root = root * ((P - 1.0) / P + mean / _power(root, P) / P)
    return root


@triton.jit
def forward_kernel(
    p_x, p_pooled, channels, eps, positions: tl.constexpr, LEVELS: tl.constexpr, FINE: tl.constexpr, N: tl.constexpr,
    P: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    i_image = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = c < channels
    stripe: tl.constexpr = positions // FINE
    fine = ()  # the sum of each fine stripe, BLOCK_C each
    for i_stripe in tl.static_range(FINE):
        b_stripe = tl.zeros((BLOCK_C,), tl.float32)
        for first in range(0, stripe, BLOCK_P):
            p = first + tl.arange(0, BLOCK_P)
            m_x = (p[:, None] < stripe) & m_c[None, :]
            o_x = (i_image * positions + i_stripe * stripe + p[:, None]) * channels + c[None, :]
            x = tl.maximum(tl.load(p_x + o_x, mask=m_x, other=0.0).to(tl.float32), eps)
            b_stripe += tl.sum(tl.where(m_x, _power(x, P), 0.0), axis=0)
        fine = fine + (b_stripe,)  # noqa: RUF005 - the form that Triton compiles
    n = 0
    for i_level in tl.static_range(len(LEVELS)):
        for i in tl.static_range(0, FINE, FINE // LEVELS[i_level]):
            total = fine[i]
            for j in tl.static_range(1, FINE // LEVELS[i_level]):
                total += fine[i + j]
            mean = tl.maximum(total * (LEVELS[i_level] / positions), 1e-38)
            tl.store(p_pooled + (i_image * N + n) * channels + c, _root(mean, P), mask=m_c)
            n += 1


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


def _launch(kernel: triton.JITFunction, tensors: tuple[torch.Tensor, ...], levels: Sequence[int], p: float, eps: float,
            *blocks: int, warps: int) -> None:  # fmt: skip
    """Launch over images and blocks of channels; `blocks` are the kernel's block sizes, the one of channels last."""
    images, height, width, channels = next(x.shape for x in tensors if x.dim() == 4)
    if images:
        kernel[(images, triton.cdiv(channels, blocks[-1]))](
            *tensors, channels, eps, height * width, tuple(levels), math.lcm(*levels), sum(levels), int(p),
            *blocks, num_warps=warps, enable_fp_fusion=True,
        )  # fmt: skip


def forward(
    features_BHWC: torch.Tensor, levels: Sequence[int], p: float, eps: float, choice: Choice = CHOICES[0]
) -> torch.Tensor:
    """B x N x C float32."""
    images, _, _, channels = features_BHWC.shape
    pooled_BNC = features_BHWC.new_empty(images, sum(levels), channels, dtype=torch.float32)
    block_p, block_c, warps = choice[0]
    while math.lcm(*levels) * block_c > SUMS_A_THREAD * 32 * warps and block_c > 32 * warps:
        block_c //= 2
    tensors = (features_BHWC.contiguous(), pooled_BNC)
    _launch(forward_kernel, tensors, levels, p, eps, block_p, block_c, warps=warps)
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
    gradient = torch.empty_like(features_BHWC, memory_format=torch.contiguous_format)
    tensors = (grad_BNC.contiguous(), features_BHWC.contiguous(), pooled_BNC, gradient)
    block_p, block_c, warps = choice[1]
    rows = triton.next_power_of_2(sum(levels))
    _launch(backward_kernel, tensors, levels, p, eps, rows, block_p, block_c, warps=warps)
    return gradient
