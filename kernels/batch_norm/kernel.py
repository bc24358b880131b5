"""Batch normalisation with residual sum and ReLU in Triton, on channels-last maps: three launches each way.

The first launch of each way sums over the positions, in S parts of them; the second adds the parts of a channel; the
third writes a map. Legend: M positions of this rank (images x height x width), C channels, S parts of the
positions, R ranks.
"""
# mypy: disable-error-code="no-untyped-def, assignment, var-annotated"

import torch
import triton
import triton.language as tl

from kernels.common.launch_kernel import Launches
from kernels.common.sizes import ceil_div

Blocks = tuple[int, int, int]  # BLOCK_M positions at once, BLOCK_C channels, warps
Choice = tuple[Blocks, Blocks]  # for the sums over positions, and for the kernels that write a map
# The first is the default. None has been timed on a GPU.
CHOICES: tuple[Choice, ...] = (
    ((32, 64, 4), (32, 64, 4)),
    ((16, 128, 4), (16, 128, 4)),
    ((64, 64, 8), (32, 128, 8)),
    ((16, 64, 2), (64, 64, 4)),
)
PROGRAMS = 1056  # how many sum over positions: eight for each of the 132 multiprocessors of an H100
ADDED = (16, 64)  # parts and channels that a program of the second launch reads at once


@triton.jit
def moments_kernel(
    p_x, p_mean, p_square, positions, rows, channels, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Mean and summed squared deviation of each channel over this part's rows.

    Deviations are taken from the mean of the part's first rows. It is usually within a few standard deviations of the
    mean, so digits do not cancel as they would in a sum of x^2.
    """
    i_part = tl.program_id(1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = c < channels
    first = i_part.to(tl.int64) * rows
    count = tl.minimum(rows, positions - first).to(tl.int32)
    m = tl.arange(0, BLOCK_M)
    near = tl.minimum(count, BLOCK_M).to(tl.float32)
    o_x = (first + m)[:, None] * channels + c[None, :]
    x = tl.load(p_x + o_x, mask=(m < count)[:, None] & m_c[None, :], other=0.0).to(tl.float32)
    pivot = tl.sum(x, axis=0) / near
    total = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    square = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for start in range(0, count, BLOCK_M):
        inside = (start + m < count)[:, None] & m_c[None, :]
        o_x = (first + start + m)[:, None] * channels + c[None, :]
        x = tl.load(p_x + o_x, mask=inside, other=0.0).to(tl.float32)
        deviation = tl.where(inside, x - pivot[None, :], 0.0)
        total += deviation
        square += deviation * deviation
    shift = tl.sum(total, axis=0) / count.to(tl.float32)
    spread = tl.sum(square, axis=0) - count.to(tl.float32) * shift * shift
    o_part = i_part * channels + c
    tl.store(p_mean + o_part, pivot + shift, mask=m_c)
    tl.store(p_square + o_part, tl.maximum(spread, 0.0), mask=m_c)


@triton.jit
def _part_counts(i_parts, positions, rows, parts):
    """How many rows each part has; the last has the remaining ones."""
    left = positions - i_parts.to(tl.int64) * rows
    return tl.where(i_parts < parts, tl.minimum(rows, tl.maximum(left, 0)), 0).to(tl.float32)


@triton.jit
def moments_sum_kernel(
    p_part_mean, p_part_square, p_mean, p_variance, p_scale, positions, rows, parts, channels, eps,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Mean, variance and 1 / sqrt(variance + eps) over all parts.

    The squared deviations of a part are its own plus count (its mean - the mean)^2 (Chan et al., 1979).
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = c < channels
    s = tl.arange(0, BLOCK_S)
    total = tl.zeros((BLOCK_S, BLOCK_C), tl.float32)
    for start in range(0, parts, BLOCK_S):
        inside = (start + s < parts)[:, None] & m_c[None, :]
        weight = _part_counts(start + s, positions, rows, parts)[:, None]
        total += weight * tl.load(p_part_mean + (start + s)[:, None] * channels + c[None, :], mask=inside, other=0.0)
    mean = tl.sum(total, axis=0) / positions
    square = tl.zeros((BLOCK_S, BLOCK_C), tl.float32)
    for start in range(0, parts, BLOCK_S):
        inside = (start + s < parts)[:, None] & m_c[None, :]
        weight = _part_counts(start + s, positions, rows, parts)[:, None]
        o_part = (start + s)[:, None] * channels + c[None, :]
        off = tl.load(p_part_mean + o_part, mask=inside, other=0.0) - mean[None, :]
        square += tl.load(p_part_square + o_part, mask=inside, other=0.0) + weight * off * off
    tl.store(p_mean + c, mean, mask=m_c)
    variance = tl.sum(square, axis=0) / positions
    tl.store(p_variance + c, variance, mask=m_c)
    tl.store(p_scale + c, 1.0 / tl.sqrt_rn(variance + eps), mask=m_c)


@triton.jit
def _normalised(x, p_mean, p_scale, p_weight, p_bias, c, m_c):
    """weight (x - mean) scale + bias, computed in the same way in both passes."""
    mean = tl.load(p_mean + c, mask=m_c, other=0.0)
    slope = tl.load(p_weight + c, mask=m_c, other=0.0).to(tl.float32) * tl.load(p_scale + c, mask=m_c, other=0.0)
    bias = tl.load(p_bias + c, mask=m_c, other=0.0).to(tl.float32)
    return (x - mean[None, :]) * slope[None, :] + bias[None, :]


@triton.jit
def normalise_kernel(
    p_x, p_residual, p_mean, p_scale, p_weight, p_bias, p_y, positions, channels,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    columns = tl.cdiv(channels, BLOCK_C)  # neighbouring programs read neighbouring channels
    m = (tl.program_id(0) // columns).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(0) % columns * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = c < channels
    inside = (m < positions)[:, None] & m_c[None, :]
    o_x = m[:, None] * channels + c[None, :]
    x = tl.load(p_x + o_x, mask=inside, other=0.0).to(tl.float32)
    y = _normalised(x, p_mean, p_scale, p_weight, p_bias, c, m_c)
    if RESIDUAL:
        y += tl.load(p_residual + o_x, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        # Written so that a NaN passes through, as it does in PyTorch.
        y = tl.where(y < 0.0, 0.0, y)
    tl.store(p_y + o_x, y.to(p_y.dtype.element_ty), mask=inside)


@triton.jit
def sums_kernel(
    p_dy, p_x, p_y, p_mean, p_scale, p_weight, p_bias, p_dz, p_sum, p_along, positions, rows, channels,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """For each channel, over this part's rows: the sums of dz and of dz (x - mean), where dz = dy [y > 0].

    With a residual, y is read to see where it is positive, and dz, the residual's gradient, is written. Without one,
    y is computed again from x, and nothing is written.
    """
    i_part = tl.program_id(1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = c < channels
    first = i_part.to(tl.int64) * rows
    count = tl.minimum(rows, positions - first).to(tl.int32)
    m = tl.arange(0, BLOCK_M)
    mean = tl.load(p_mean + c, mask=m_c, other=0.0)
    total = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    along = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for start in range(0, count, BLOCK_M):
        inside = (start + m < count)[:, None] & m_c[None, :]
        o_x = (first + start + m)[:, None] * channels + c[None, :]
        x = tl.load(p_x + o_x, mask=inside, other=0.0).to(tl.float32)
        dz = tl.load(p_dy + o_x, mask=inside, other=0.0).to(tl.float32)
        if RELU:
            if RESIDUAL:
                y = tl.load(p_y + o_x, mask=inside, other=0.0).to(tl.float32)
            else:
                y = _normalised(x, p_mean, p_scale, p_weight, p_bias, c, m_c)
            dz = tl.where(y > 0.0, dz, 0.0)
            if RESIDUAL:
                tl.store(p_dz + o_x, dz.to(p_dz.dtype.element_ty), mask=inside)
        total += dz
        along += tl.where(inside, dz * (x - mean[None, :]), 0.0)
    o_part = i_part * channels + c
    tl.store(p_sum + o_part, tl.sum(total, axis=0), mask=m_c)
    tl.store(p_along + o_part, tl.sum(along, axis=0), mask=m_c)


@triton.jit
def sums_sum_kernel(
    p_part_sum, p_part_along, p_scale, p_sum, p_along, p_d_weight, parts, channels,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Both sums over all parts, and the gradient of the weight."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = c < channels
    s = tl.arange(0, BLOCK_S)
    total = tl.zeros((BLOCK_S, BLOCK_C), tl.float32)
    along = tl.zeros((BLOCK_S, BLOCK_C), tl.float32)
    for start in range(0, parts, BLOCK_S):
        inside = (start + s < parts)[:, None] & m_c[None, :]
        o_part = (start + s)[:, None] * channels + c[None, :]
        total += tl.load(p_part_sum + o_part, mask=inside, other=0.0)
        along += tl.load(p_part_along + o_part, mask=inside, other=0.0)
    tl.store(p_sum + c, tl.sum(total, axis=0), mask=m_c)
    along_C = tl.sum(along, axis=0)
    tl.store(p_along + c, along_C, mask=m_c)
    tl.store(p_d_weight + c, along_C * tl.load(p_scale + c, mask=m_c, other=0.0), mask=m_c)


@triton.jit
def gradient_kernel(
    p_dy, p_x, p_mean, p_scale, p_weight, p_bias, p_sum, p_along, p_dx, positions, channels, divisor,
    RELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx = weight scale (dz - sum / N - (x - mean) scale^2 along / N); with RELU, dz = dy [y > 0], with y from x."""
    columns = tl.cdiv(channels, BLOCK_C)  # neighbouring programs read neighbouring channels
    m = (tl.program_id(0) // columns).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(0) % columns * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = c < channels
    inside = (m < positions)[:, None] & m_c[None, :]
    o_x = m[:, None] * channels + c[None, :]
    x = tl.load(p_x + o_x, mask=inside, other=0.0).to(tl.float32)
    dz = tl.load(p_dy + o_x, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        dz = tl.where(_normalised(x, p_mean, p_scale, p_weight, p_bias, c, m_c) > 0.0, dz, 0.0)
    mean = tl.load(p_mean + c, mask=m_c, other=0.0)
    scale = tl.load(p_scale + c, mask=m_c, other=0.0)
    slope = tl.load(p_weight + c, mask=m_c, other=0.0).to(tl.float32) * scale
    share = tl.load(p_sum + c, mask=m_c, other=0.0) / divisor
    tilt = scale * scale * tl.load(p_along + c, mask=m_c, other=0.0) / divisor
    dx = slope[None, :] * (dz - share[None, :] - (x - mean[None, :]) * tilt[None, :])
    tl.store(p_dx + o_x, dx.to(p_dx.dtype.element_ty), mask=inside)


def _split(positions: int, channels: int, blocks: Blocks) -> tuple[int, int]:
    """(parts, rows of a part): about PROGRAMS programs over all channels, each with whole blocks of rows."""
    wanted = max(1, PROGRAMS // ceil_div(channels, blocks[1]))
    rows = blocks[0] * ceil_div(ceil_div(positions, wanted), blocks[0])
    return ceil_div(positions, rows), rows


_moments_launches, _normalise_launches, _sums_launches, _gradient_launches = (Launches() for _ in range(4))


def moments(
    x_MC: torch.Tensor, eps: float, choice: Choice = CHOICES[0]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """mean_C, variance_C (divided by M) and 1 / sqrt(variance + eps), float32, of M >= 1 positions."""
    positions, channels = x_MC.shape
    parts, rows = _split(positions, channels, choice[0])
    block_m, block_c, warps = choice[0]
    part_mean, part_square = x_MC.new_empty(2, parts, channels, dtype=torch.float32)
    mean_C, variance_C, scale_C = x_MC.new_empty(3, channels, dtype=torch.float32)
    launch = _moments_launches.of((x_MC.shape, parts, rows, choice), x_MC)
    launch(
        moments_kernel, (ceil_div(channels, block_c), parts),
        x_MC, part_mean, part_square, positions, rows, channels, block_m, block_c,
        num_warps=warps, enable_fp_fusion=True,
    )  # fmt: skip
    launch(
        moments_sum_kernel, (ceil_div(channels, ADDED[1]),),
        part_mean, part_square, mean_C, variance_C, scale_C, positions, rows, parts, channels, float(eps), *ADDED,
        num_warps=2, enable_fp_fusion=True,
    )  # fmt: skip
    return mean_C, variance_C, scale_C


def normalise(
    x_MC: torch.Tensor,
    residual_MC: torch.Tensor | None,
    statistics: tuple[torch.Tensor, torch.Tensor],
    weight_C: torch.Tensor,
    bias_C: torch.Tensor,
    relu: bool,
    choice: Choice = CHOICES[0],
) -> torch.Tensor:
    """The normalised maps, M x C in the dtype of x; `statistics`: mean_C and 1 / sqrt(variance + eps)."""
    positions, channels = x_MC.shape
    result = torch.empty_like(x_MC)
    block_m, block_c, warps = choice[1]
    launch = _normalise_launches.of((x_MC.shape, relu, choice), x_MC, residual_MC, *statistics, weight_C, bias_C)
    launch(
        normalise_kernel, (ceil_div(channels, block_c) * ceil_div(positions, block_m),),
        x_MC, residual_MC, *statistics, weight_C, bias_C, result, positions, channels,
        residual_MC is not None, relu, block_m, block_c, num_warps=warps, enable_fp_fusion=True,
    )  # fmt: skip
    return result


def gradient_sums(
    dy_MC: torch.Tensor,
    x_MC: torch.Tensor,
    y_MC: torch.Tensor | None,
    statistics: tuple[torch.Tensor, torch.Tensor],
    weight_C: torch.Tensor,
    bias_C: torch.Tensor,
    relu: bool,
    choice: Choice = CHOICES[0],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """dz_MC; then float32 of length C: the sums over positions of dz and of dz (x - mean), and the weight's gradient.

    `y_MC`: the result, if a residual was added; dz is then a new map, the gradient of the residual. Otherwise dy itself
    is returned, and `gradient` computes dz from it.
    """
    positions, channels = x_MC.shape
    parts, rows = _split(positions, channels, choice[0])
    block_m, block_c, warps = choice[0]
    written = relu and y_MC is not None
    dz_MC = torch.empty_like(dy_MC) if written else dy_MC
    part_sum, part_along = x_MC.new_empty(2, parts, channels, dtype=torch.float32)
    sum_C, along_C, d_weight_C = x_MC.new_empty(3, channels, dtype=torch.float32)
    given = (dy_MC, x_MC, y_MC, *statistics, weight_C, bias_C)
    launch = _sums_launches.of((x_MC.shape, parts, rows, relu, choice), *given)
    launch(
        sums_kernel, (ceil_div(channels, block_c), parts),
        *given, dz_MC, part_sum, part_along, positions, rows, channels,
        written, relu, block_m, block_c, num_warps=warps, enable_fp_fusion=True,
    )  # fmt: skip
    launch(
        sums_sum_kernel, (ceil_div(channels, ADDED[1]),),
        part_sum, part_along, statistics[1], sum_C, along_C, d_weight_C, parts, channels, *ADDED,
        num_warps=2, enable_fp_fusion=True,
    )  # fmt: skip
    return dz_MC, sum_C, along_C, d_weight_C


def gradient(
    dz_MC: torch.Tensor,
    x_MC: torch.Tensor,
    statistics: tuple[torch.Tensor, torch.Tensor],
    weight_C: torch.Tensor,
    bias_C: torch.Tensor,
    sums: tuple[torch.Tensor, torch.Tensor, int],
    relu: bool,
    choice: Choice = CHOICES[0],
) -> torch.Tensor:
    """dx_MC in the dtype of x; `sums`: both sums, and the number to divide them by.

    `relu`: dz_MC is the gradient of the result, and is masked here where the result is 0.
    """
    positions, channels = x_MC.shape
    result = torch.empty_like(x_MC)
    block_m, block_c, warps = choice[1]
    sum_C, along_C, divisor = sums
    given = (dz_MC, x_MC, *statistics, weight_C, bias_C, sum_C, along_C)
    launch = _gradient_launches.of((x_MC.shape, divisor, relu, choice), *given)
    launch(
        gradient_kernel, (ceil_div(channels, block_c) * ceil_div(positions, block_m),),
        *given, result, positions, channels, divisor,
        relu, block_m, block_c, num_warps=warps, enable_fp_fusion=True,
    )  # fmt: skip
    return result
