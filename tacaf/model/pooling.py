"""Generalised-mean pooling (GeM, p = 3) of whole maps and of horizontal stripes, from one read of the map.

B images, C channels, H x W positions, N = sum(levels) stripes, L = H*W.
"""

import torch

from kernels.common.path import Backend
from kernels.gem_pyramid import gem_pyramid

GEM_P = 3.0  # AGW, LbA: fixed, not learned
GEM_EPS = 1e-6  # clamp under the power; 1e-12 after it would vanish in half precision (method §3)


def rows_BHWC(features_BCHW: torch.Tensor) -> torch.Tensor:
    """The map with channels last, contiguous: a view for channels-last tensors, a copy for others."""
    return features_BCHW.permute(0, 2, 3, 1).contiguous()


def map_BCHW(rows_BLC: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """B x L x C back to a channels-last B x C x H x W view."""
    return torch.unflatten(rows_BLC, 1, (height, width)).permute(0, 3, 1, 2)


def gem(features_BCHW: torch.Tensor, levels: tuple[int, ...] = (1,), backend: Backend = "auto") -> torch.Tensor:
    """GeM of every stripe of every level, float32, B x N x C, coarse to fine: (1,) is the usual global GeM alone.

    mean over a stripe of max(f, 1e-6)^3, then the cube root (AGW, CAJ); stripes as method §5.1. backend: as
    `kernels.gem_pyramid`.
    """
    with torch.autocast(features_BCHW.device.type, enabled=False):
        return gem_pyramid(rows_BHWC(features_BCHW), levels, GEM_P, GEM_EPS, backend).float()
