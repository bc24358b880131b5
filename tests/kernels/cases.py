"""Inputs every kernel test shares, and the comparison of two ways to compute one op: outputs and every gradient."""

from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.alignment import feature_mask


def alignment_case(
    kind: str = "usual", dtype: torch.dtype = torch.float64, images: int = 4, length: int = 9, channels: int = 8
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """features BxLxC (not negative, as after ReLU), mask BxL, anchor N, target N. `kind` names what is hard."""
    draw = torch.Generator().manual_seed(7)
    features = torch.rand(images, length, channels, generator=draw, dtype=torch.float64).to(dtype)
    anchor, target = torch.arange(images), torch.arange(images).roll(1)
    if kind == "repeated":
        anchor, target = torch.tensor([0, 1, 1, 2, 0, 3]), torch.tensor([2, 2, 2, 0, 2, 3])
    elif kind == "empty":
        anchor = target = torch.empty(0, dtype=torch.int64)
    elif kind == "same":  # the target is the anchor's copy: with a large beta w comes to lie on f
        features[1] = features[0]
        anchor, target = torch.tensor([0, 1, 2]), torch.tensor([1, 0, 3])
    elif kind == "dead":  # vectors without a direction, in anchor and target
        features[0, 3] = 0
        features[2, :2] = 0
    elif kind == "constant":  # one norm everywhere: the mask is 0
        features[0] = features[0, :1]
    mask = feature_mask(features)
    if kind == "zero mask":
        mask = torch.zeros_like(mask)
    return features, mask, anchor, target


def outputs_and_gradients(
    function: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]], *inputs: torch.Tensor
) -> list[torch.Tensor]:
    """All outputs, then the gradient of every input under fixed random output gradients."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    result = function(*leaves)
    outputs = result if isinstance(result, tuple) else (result,)
    draw = torch.Generator().manual_seed(11)
    sums = [
        (y * torch.randn(y.shape, generator=draw, dtype=torch.float64).to(y)).sum() for y in outputs if y.requires_grad
    ]
    gradients = torch.autograd.grad(sum(sums), leaves)
    return [y.detach() for y in outputs] + list(gradients)


class CustomOps(TorchDispatchMode):
    """Collects the names of the kernels' custom operators that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "kernels":
            self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def assert_equal(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> None:
    """The largest difference is at most `tolerance` of the largest expected number; nothing is NaN or infinite."""
    assert len(found) == len(expected)
    for i, (f, e) in enumerate(zip(found, expected, strict=True)):
        assert f.shape == e.shape, i
        assert f.dtype == e.dtype, i
        assert torch.isfinite(f).all(), f"output {i} is not finite"
        if e.numel():
            error = float((f.double() - e.double()).abs().max() / e.double().abs().max().clamp_min(1e-30))
            assert error <= tolerance, f"output {i}: relative error {error:.2e}, at most {tolerance:.0e}"
