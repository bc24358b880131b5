"""The GeM pyramid in plain PyTorch, some images at a time: every level from one read of the map (see README.md).

Legend: B images, H x W positions, C channels, N = sum(levels) stripes, coarse to fine.
"""

from collections.abc import Sequence

import torch

from kernels.common.dtypes import compute_dtype

CACHED_NUMBERS = 2**17  # how many are processed at a time; with their powers they stay in a core's cache


def forward(features_BHWC: torch.Tensor, levels: Sequence[int], p: float, eps: float) -> torch.Tensor:
    """B x N x C: the powers of a row are summed once, and the levels add up these sums."""
    images, height, width, channels = features_BHWC.shape
    rows = features_BHWC.new_empty(images, height, channels, dtype=compute_dtype(features_BHWC))
    at_once = _images_at_once(features_BHWC)
    for some, row in zip(features_BHWC.split(at_once), rows.split(at_once), strict=True):
        torch.sum(_power(some.to(row.dtype).clamp_min(eps), p), dim=2, out=row)
    means = [torch.unflatten(rows, 1, (level, -1)).sum(2) * (level / (height * width)) for level in levels]
    return torch.cat(means, dim=1).pow_(1 / p)


def backward(
    grad_BNC: torch.Tensor,
    features_BHWC: torch.Tensor,
    pooled_BNC: torch.Tensor,
    levels: Sequence[int],
    p: float,
    eps: float,
) -> torch.Tensor:
    """dx = max(x, eps)^(p-1) [x >= eps] * sum over levels of grad * pooled^(1-p) / (positions of the stripe)."""
    _, height, width, _ = features_BHWC.shape
    slope_BNC = grad_BNC * pooled_BNC.pow(1 - p)
    stripes = torch.split(slope_BNC, list(levels), dim=1)
    slope_BHC = sum(
        (s * (level / (height * width))).repeat_interleave(height // level, dim=1)
        for s, level in zip(stripes, levels, strict=True)
    )
    assert isinstance(slope_BHC, torch.Tensor)  # sum returns 0 for no levels, but there is at least one
    gradient = torch.empty_like(features_BHWC, memory_format=torch.contiguous_format)
    at_once = _images_at_once(features_BHWC)
    parts = (tensor.split(at_once) for tensor in (features_BHWC, slope_BHC, gradient))
    for some, slope, out in zip(*parts, strict=True):
        x = some.to(slope.dtype)
        out.copy_(_power(x.clamp_min(eps), p - 1).mul_(slope.unsqueeze(2)).masked_fill_(x < eps, 0))
    return gradient


def _images_at_once(features_BHWC: torch.Tensor) -> int:
    """Several if maps are small, because each step of the loop costs some microseconds whatever its size."""
    return max(1, CACHED_NUMBERS // max(1, features_BHWC[:1].numel()))


def _power(x: torch.Tensor, exponent: float) -> torch.Tensor:
    """x ** exponent; the usual small whole exponents are products, which are many times faster than pow."""
    if exponent in (1, 2, 3):
        return x if exponent == 1 else x * x if exponent == 2 else (x * x).mul_(x)
    return x.pow(exponent)
