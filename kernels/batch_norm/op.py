"""The public `batch_norm_relu`: checks, choice of path, and the autograd function around the Triton launches.

Legend: B images, H x W positions, M = B * H * W, C channels, R ranks.
"""

from typing import Any

import torch

from kernels.batch_norm import reference
from kernels.batch_norm.reference import Gather
from kernels.common.checks import check_positive, check_tensor
from kernels.common.path import Backend, choose_path


def batch_norm_relu(
    features_BHWC: torch.Tensor,
    weight_C: torch.Tensor,
    bias_C: torch.Tensor,
    eps: float,
    residual_BHWC: torch.Tensor | None = None,
    relu: bool = True,
    gather: Gather | None = None,
    backend: Backend = "auto",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """relu(batch_norm(features) + residual) by the batch's own statistics (ours; Ioffe and Szegedy, 2015).

    features_BHWC: channels-last maps, any floating dtype; weight_C, bias_C: floating, on the same device;
    residual_BHWC: added before the ReLU, of the features' shape and dtype. Statistics are taken over all B x H x W
    positions. `gather` extends them over ranks: it takes one row of this rank, 1 x K, and returns the rows of all
    ranks, R x K; it is called once in each pass, and the gradients of weight and bias are those of this rank.
    Returns the maps in the features' dtype, and mean_C and variance_C in float32 (float64 for float64), which carry no
    gradient; the variance is divided by the number of positions.
    backend: `auto`, `reference` (the definition, which for several ranks needs a differentiable `gather`) or `triton`.
    On a CPU, `auto` runs the definition. Raises TypeError or ValueError before any work.
    """
    _check(features_BHWC, weight_C, bias_C, eps, residual_BHWC)
    positions = features_BHWC.numel() // features_BHWC.shape[3]
    if positions < (1 if gather else 2):
        raise ValueError(f"features_BHWC: expected at least two positions, got {positions}; pass a larger batch")
    if choose_path(backend, features_BHWC) != "triton":
        alone = gather or (lambda row: row)
        return reference.batch_norm_relu(features_BHWC, weight_C, bias_C, eps, residual_BHWC, relu, alone)
    result: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = _BatchNormRelu.apply(
        features_BHWC, weight_C.contiguous(), bias_C.contiguous(), residual_BHWC, float(eps), relu, gather
    )
    return result


def _check(
    features_BHWC: torch.Tensor,
    weight_C: torch.Tensor,
    bias_C: torch.Tensor,
    eps: float,
    residual_BHWC: torch.Tensor | None,
) -> None:
    check_tensor("features_BHWC", features_BHWC, "B x H x W x C")
    shape = tuple(features_BHWC.shape)
    if not shape[3]:
        raise ValueError(f"features_BHWC: expected at least one channel, got shape {shape}; pass whole maps")
    for name, values in (("weight_C", weight_C), ("bias_C", bias_C)):
        check_tensor(name, values, "C", features_BHWC.device)
        if len(values) != shape[3]:
            raise ValueError(f"{name}: expected one number for each of {shape[3]} channels, got {len(values)}")
    check_positive("eps", eps)
    if residual_BHWC is None:
        return
    check_tensor("residual_BHWC", residual_BHWC, "B x H x W x C", features_BHWC.device)
    if residual_BHWC.shape != features_BHWC.shape:
        raise ValueError(f"residual_BHWC: expected shape {shape}, got {tuple(residual_BHWC.shape)}; pass equal shapes")
    if residual_BHWC.dtype != features_BHWC.dtype:
        raise TypeError(
            f"residual_BHWC: expected {features_BHWC.dtype} like the features, got {residual_BHWC.dtype}; convert it"
        )


class _BatchNormRelu(torch.autograd.Function):
    """The Triton launches. This is not a custom op, because `gather` is called between two of them."""

    @staticmethod
    def forward(
        ctx: Any,
        features_BHWC: torch.Tensor,
        weight_C: torch.Tensor,
        bias_C: torch.Tensor,
        residual_BHWC: torch.Tensor | None,
        eps: float,
        relu: bool,
        gather: Gather | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        from kernels.batch_norm import kernel  # here, because it imports Triton

        x_MC = _rows(features_BHWC)
        mean_C, variance_C, scale_C = kernel.moments(x_MC, eps)
        count = None
        if gather is not None:
            mean_C, variance_C, count = _moments_of_ranks(mean_C, variance_C, len(x_MC), gather)
            scale_C = (variance_C + eps).rsqrt()
        residual_MC = None if residual_BHWC is None else _rows(residual_BHWC)
        y_MC = kernel.normalise(x_MC, residual_MC, (mean_C, scale_C), weight_C, bias_C, relu)
        result = y_MC.view(features_BHWC.shape)
        kept = result if relu and residual_BHWC is not None else None
        ctx.save_for_backward(x_MC, weight_C, bias_C, mean_C, scale_C, kept, count)
        ctx.relu, ctx.gather, ctx.added = relu, gather, residual_BHWC is not None
        ctx.mark_non_differentiable(mean_C, variance_C)
        return result, mean_C, variance_C

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy_BHWC: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        from kernels.batch_norm import kernel

        x_MC, weight_C, bias_C, mean_C, scale_C, result, count = ctx.saved_tensors
        y_MC = None if result is None else _rows(result)
        fixed = ((mean_C, scale_C), weight_C, bias_C)
        dz_MC, sum_C, along_C, d_weight_C = kernel.gradient_sums(_rows(dy_BHWC), x_MC, y_MC, *fixed, ctx.relu)
        d_weight_C, d_bias_C = d_weight_C.to(weight_C.dtype), sum_C.to(bias_C.dtype)
        sums = (sum_C, along_C, len(x_MC))
        if ctx.gather is not None:
            totals = ctx.gather(torch.cat([sum_C, along_C])[None]).sum(0) / count
            sums = (*totals.chunk(2), 1)
        # With a residual, dz is already 0 where the result is 0.
        dx_MC = kernel.gradient(dz_MC, x_MC, *fixed, sums, ctx.relu and y_MC is None)
        d_residual = dz_MC.view(dy_BHWC.shape) if ctx.added else None
        return dx_MC.view(dy_BHWC.shape), d_weight_C, d_bias_C, d_residual, None, None, None


def _rows(map_BHWC: torch.Tensor) -> torch.Tensor:
    """The map as M x C; a view if the map is contiguous."""
    return map_BHWC.contiguous().view(-1, map_BHWC.shape[3])


def _moments_of_ranks(
    mean_C: torch.Tensor, variance_C: torch.Tensor, positions: int, gather: Gather
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and variance over the positions of all ranks, and the number of these positions."""
    count = mean_C.new_full((1,), positions)
    rows_RX = gather(torch.cat([mean_C, variance_C, count])[None])
    mean_RC, variance_RC, count_R1 = rows_RX.split([len(mean_C), len(mean_C), 1], dim=1)
    share_R1 = count_R1 / count_R1.sum()
    total_C = (share_R1 * mean_RC).sum(0)
    spread_C = (share_R1 * (variance_RC + (mean_RC - total_C).square())).sum(0)
    return total_C, spread_C, count_R1.sum()
