"""The definition of batch normalisation with a residual sum and ReLU, in plain PyTorch, which tests compare with.

Legend: B images, H x W positions, C channels, R ranks, N = B * H * W positions of all ranks.
"""

from collections.abc import Callable

import torch

from kernels.common.dtypes import compute_dtype

Gather = Callable[[torch.Tensor], torch.Tensor]  # one row of this rank, 1 x K, to the rows of all ranks, R x K


def batch_norm_relu(
    features_BHWC: torch.Tensor,
    weight_C: torch.Tensor,
    bias_C: torch.Tensor,
    eps: float,
    residual_BHWC: torch.Tensor | None,
    relu: bool,
    gather: Gather,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """relu(weight (x - mean) / sqrt(variance + eps) + bias + residual), mean and variance over all positions.

    Returns the maps in the dtype of the features, and mean_C and variance_C (divided by N), which carry no gradient.
    If `gather` is differentiable, the gradient is that of all ranks' losses together.
    """
    with torch.autocast(features_BHWC.device.type, enabled=False):
        dtype = compute_dtype(features_BHWC)
        values = features_BHWC.to(dtype)
        count = values.new_tensor([values.numel() // values.shape[-1]])
        totals = gather(torch.cat([values.sum((0, 1, 2)), count])[None]).sum(0)
        mean_C = totals[:-1] / totals[-1].detach()
        centred = values - mean_C
        variance_C = gather(centred.square().sum((0, 1, 2))[None]).sum(0) / totals[-1].detach()
        result = centred * (variance_C + eps).rsqrt() * weight_C.to(dtype) + bias_C.to(dtype)
        if residual_BHWC is not None:
            result = result + residual_BHWC.to(dtype)
        if relu:
            result = result.relu()
        return result.to(features_BHWC.dtype), mean_C.detach(), variance_C.detach()
