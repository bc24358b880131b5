"""Runs an op's three passes on prepared tensors, and measures its errors against the definition in float64."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from perf.parts.cases import Case, Tensors

PASSES = ("forward", "backward", "both")
# Relative to the largest number. In float32 a GPU's exp2, division, logarithm and root are approximate: the error is
# 3.7e-6 instead of 1e-6 with exact instructions, so the floor is 1e-5.
ERROR_FLOOR = {torch.bfloat16: 4e-3, torch.float16: 1e-3, torch.float32: 1e-5}


class WrongResultError(Exception):
    """The op does not compute its definition, so no figure is reported."""


class Work(NamedTuple):
    """A case's tensors in one dtype on one device, shared by all providers."""

    leaves: Tensors  # they get gradients
    constants: Tensors
    grads: Tensors  # of the outputs, float32


def differentiable(result: torch.Tensor | Tensors) -> list[torch.Tensor]:
    outputs = result if isinstance(result, tuple) else (result,)
    return [output for output in outputs if output.requires_grad]


def prepare(case: Case, dtype: torch.dtype, device: str) -> Work:
    """New inputs, and gradients with the shapes of the plain formulas' outputs."""
    inputs, constants = case.inputs(dtype, device)
    leaves = tuple(tensor.requires_grad_() for tensor in inputs)
    draw = torch.Generator().manual_seed(5)
    outputs = differentiable(case.eager(*leaves, *constants))
    return Work(leaves, constants, tuple(torch.randn(one.shape, generator=draw).to(device) for one in outputs))


def passes(function: Callable[..., Any], work: Work) -> dict[str, Callable[[], Any]]:
    """The three passes as functions without arguments; `backward` keeps the graph of one forward."""
    leaves, constants, _ = work
    outputs = differentiable(function(*leaves, *constants))
    grads = [grad.to(output) for grad, output in zip(work.grads, outputs, strict=True)]

    def both() -> Any:
        return torch.autograd.grad(differentiable(function(*leaves, *constants)), leaves, grads)

    return {
        "forward": lambda: function(*leaves, *constants),
        "backward": lambda: torch.autograd.grad(outputs, leaves, grads, retain_graph=True),
        "both": both,
    }


def results(function: Callable[..., Any], work: Work) -> list[torch.Tensor]:
    """Every differentiable output, then every gradient."""
    outputs = differentiable(function(*work.leaves, *work.constants))
    grads = [grad.to(output) for grad, output in zip(work.grads, outputs, strict=True)]
    gradients = torch.autograd.grad(outputs, work.leaves, grads)
    return [output.detach() for output in outputs] + list(gradients)


def exact_results(case: Case, work: Work) -> list[torch.Tensor]:
    """The results of the definition in float64, for the same rounded inputs."""
    leaves = tuple(tensor.detach().double().requires_grad_() for tensor in work.leaves)
    constants = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in work.constants)
    return results(case.definition, Work(leaves, constants, work.grads))


def errors(function: Callable[..., Any], work: Work, exact: list[torch.Tensor]) -> list[float]:
    """The largest error of every output and gradient, relative to the largest number of the exact result."""
    found = results(function, work)
    return [((f.double() - e).abs().max() / e.abs().max()).item() for f, e in zip(found, exact, strict=True)]


def check(case: Case, work: Work) -> dict[str, float]:
    """The largest error of the op and of plain PyTorch, as they are named in a result file.

    Raises WrongResultError if an error exceeds both twice plain PyTorch's and the floor.
    """
    dtype, exact = work.leaves[0].dtype, exact_results(case, work)
    ours, eager = (errors(function, work, exact) for function in (case.ours, case.eager))
    for place, (error, allowed) in enumerate(zip(ours, eager, strict=True)):
        if not error <= max(2 * allowed, ERROR_FLOOR[dtype]):
            raise WrongResultError(
                f"{case.name} {dtype}: output {place}: expected an error of at most {2 * allowed:.1e} (twice plain "
                f"PyTorch's), got {error:.1e}; no figure on a wrong result"
            )
    return {"largest_error": max(ours), "eager_error": max(eager)}
