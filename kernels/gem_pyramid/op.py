"""The public `gem_pyramid`: checks, choice of path, and the custom op with its fake and its backward.

Legend: B images, H x W positions, C channels, N = sum(levels) pooled stripes.
"""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch

from kernels.common.checks import check_positive, check_tensor
from kernels.common.dtypes import compute_dtype
from kernels.common.operator import Operator
from kernels.common.path import Backend, choose_path
from kernels.gem_pyramid import plain, reference

WHOLE_POWERS = range(1, 9)  # the kernel computes them by multiplication; other powers are left to PyTorch


def gem_pyramid(
    features_BHWC: torch.Tensor, levels: Sequence[int], p: float, eps: float, backend: Backend = "auto"
) -> torch.Tensor:
    """Generalised mean of every horizontal stripe of every level, from one read of the map (method §5.1).

    features_BHWC: B x H x W x C, any floating dtype; levels: stripes per level, each dividing H, e.g. (1, 3, 6); a
    stripe is H / level rows, its value (mean over positions of max(x, eps)^p)^(1/p).
    Returns B x N x C, N = sum(levels), in the order of `levels` and from top to bottom inside a level, float32
    (float64 for float64) for every dtype of the map. backend: `auto`, `reference` (the definition) or `triton`.
    Raises TypeError or ValueError before any work.
    """
    check_tensor("features_BHWC", features_BHWC, "B x H x W x C")
    levels = _whole_levels(levels)
    _check(features_BHWC, levels, p, eps)
    path = choose_path(backend, features_BHWC, "" if p in WHOLE_POWERS else f"p = {p} (whole p up to 8)")
    if path == "reference":
        return reference.gem_pyramid(features_BHWC, levels, p, eps)
    pooled_BNC: torch.Tensor = _operator(features_BHWC, levels, float(p), float(eps), path)
    return pooled_BNC


def _whole_levels(levels: Sequence[int]) -> list[int]:
    if not isinstance(levels, (tuple, list, Sequence)) or not all(
        isinstance(level, int) and not isinstance(level, bool) for level in levels
    ):
        raise TypeError(f"levels: expected a list of whole numbers, got {levels!r}; pass for example (1, 3, 6)")
    return list(levels)


def _check(features_BHWC: torch.Tensor, levels: list[int], p: float, eps: float) -> None:
    shape, height = tuple(features_BHWC.shape), features_BHWC.shape[1]
    if 0 in shape[1:]:
        raise ValueError(f"features_BHWC: expected no empty dimension except B, got {shape}; pass whole maps")
    if not levels:
        raise ValueError("levels: expected at least one number of stripes, got none; use (1,) for the global mean")
    for level in levels:
        if level < 1 or height % level:
            raise ValueError(
                f"levels: expected divisors of the map's height {height}, got {level}; choose levels that divide it"
            )
    check_positive("p", p)
    check_positive("eps", eps)
    tiny = torch.finfo(compute_dtype(features_BHWC)).tiny
    if eps ** max(p, 1.0) < tiny:
        raise ValueError(f"eps: expected eps^p >= {tiny:.0e}, got {eps}^{p}, which underflows; raise eps or lower p")


def _module(path: str) -> ModuleType:
    if path == "plain":
        return plain
    from kernels.gem_pyramid import kernel  # here, because it imports Triton

    return kernel


def _forward(features_BHWC: torch.Tensor, levels: Sequence[int], p: float, eps: float, path: str) -> torch.Tensor:
    pooled_BNC: torch.Tensor = _module(path).forward(features_BHWC, levels, p, eps)
    return pooled_BNC


def _fake(features_BHWC: torch.Tensor, levels: Sequence[int], p: float, eps: float, path: str) -> torch.Tensor:
    images, _, _, channels = features_BHWC.shape
    return features_BHWC.new_empty(images, sum(levels), channels, dtype=compute_dtype(features_BHWC))


def _backward(
    grad_BNC: torch.Tensor,
    features_BHWC: torch.Tensor,
    pooled_BNC: torch.Tensor,
    levels: Sequence[int],
    p: float,
    eps: float,
    path: str,
) -> torch.Tensor:
    gradient_BHWC: torch.Tensor = _module(path).backward(grad_BNC, features_BHWC, pooled_BNC, levels, p, eps)
    return gradient_BHWC


def _backward_fake(grad_BNC: torch.Tensor, features_BHWC: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(features_BHWC, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    features_BHWC, *ctx.settings = inputs
    ctx.save_for_backward(features_BHWC, output)


def _differentiate(backward: Callable[..., Any], ctx: Any, grad_BNC: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return backward(grad_BNC, *ctx.saved_tensors, *ctx.settings), None, None, None, None


_operator = Operator("gem_pyramid", _forward, _fake, _backward, _backward_fake, _save, _differentiate)
