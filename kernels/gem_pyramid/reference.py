"""The definition of the GeM pyramid in plain PyTorch, which tests compare with (method §5.1; Radenović et al. for GeM).

Legend: B images, H x W positions, C channels, N = sum(levels) pooled stripes.
"""

from collections.abc import Sequence

import torch

from kernels.common.dtypes import compute_dtype


def gem_pyramid(features_BHWC: torch.Tensor, levels: Sequence[int], p: float, eps: float) -> torch.Tensor:
    """Generalised mean of every horizontal stripe of every level: (mean of max(x, eps)^p)^(1/p).

    features_BHWC: B x H x W x C; a level of n cuts the height into n stripes of H / n rows. Returns B x N x C, in
    the order of `levels` and from top to bottom inside a level, float32 (float64 for float64).
    """
    with torch.autocast(features_BHWC.device.type, enabled=False):
        powers = features_BHWC.to(compute_dtype(features_BHWC)).clamp_min(eps).pow(p)
        stripes = [torch.unflatten(powers, 1, (level, -1)).mean(dim=(2, 3)) for level in levels]
        return torch.cat(stripes, dim=1).pow(1 / p)
