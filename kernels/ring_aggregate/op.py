"""The public `ring_aggregate`: checks, choice of path, and the custom op with its fake and its backward.

Legend: B images, R parts of the ring, D node width, A projection width.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from kernels.common.checks import check_tensor
from kernels.common.operator import Operator
from kernels.common.path import Backend, choose_path
from kernels.ring_aggregate import plain, reference

MAX_PARTS = 16  # the kernel keeps R x R x R numbers in registers


def ring_aggregate(
    parts_BRD: torch.Tensor, theta_BRA: torch.Tensor, phi_BRA: torch.Tensor, rounds: int, backend: Backend = "auto"
) -> torch.Tensor:
    """Let every part of a ring look at itself and its two neighbours, `rounds` times (paper §3; method §5.2).

    A round: b_ij = softmax over j in {i, i-1, i+1 mod R} of <theta_i, phi_j> / sqrt(A); u_i <- sum_j b_ij u_j.
    Theta and phi are linear in u and follow the same recurrence, so they are projected only once, before the rounds.
    parts_BRD: B x R x D, R >= 3; theta_BRA, phi_BRA: B x R x A; floating, their dtypes may differ (autocast); rounds
    >= 1.
    Returns u after the rounds, B x R x D in the parts' dtype, summed in float32 (float64 for float64); the caller adds
    the self-connection. backend: `auto`, `reference` (the definition) or `triton`. Raises TypeError or ValueError
    before any work.
    """
    _check(parts_BRD, theta_BRA, phi_BRA, rounds)
    obstacle = f"{parts_BRD.shape[1]} parts (up to {MAX_PARTS})" if parts_BRD.shape[1] > MAX_PARTS else ""
    path = choose_path(backend, parts_BRD, obstacle)
    if path == "reference":
        return reference.ring_aggregate(parts_BRD, theta_BRA, phi_BRA, rounds)
    mixed_BRD: torch.Tensor = _operator(parts_BRD, theta_BRA, phi_BRA, rounds, path)
    return mixed_BRD


def _check(parts_BRD: torch.Tensor, theta_BRA: torch.Tensor, phi_BRA: torch.Tensor, rounds: int) -> None:
    check_tensor("parts_BRD", parts_BRD, "B x R x D")
    if parts_BRD.shape[1] < 3:
        raise ValueError(f"parts_BRD: expected a ring of R >= 3 parts, got {parts_BRD.shape[1]}; use finer levels")
    for name, projection in (("theta_BRA", theta_BRA), ("phi_BRA", phi_BRA)):
        check_tensor(name, projection, "B x R x A", parts_BRD.device)
        if (
            projection.shape[:2] != parts_BRD.shape[:2]
            or projection.shape != theta_BRA.shape
            or not projection.shape[2]
        ):
            expected = (*parts_BRD.shape[:2], theta_BRA.shape[-1] or 1)
            raise ValueError(f"{name}: expected shape {expected}, got {tuple(projection.shape)}; project parts_BRD")
    if isinstance(rounds, bool) or not isinstance(rounds, int):
        raise TypeError(f"rounds: expected an integer, got {type(rounds).__name__}; pass a whole number of rounds")
    if rounds < 1:
        raise ValueError(f"rounds: expected at least 1, got {rounds}; leave the ring out instead")


def _module(path: str) -> ModuleType:
    if path == "plain":
        return plain
    from kernels.ring_aggregate import kernel  # here, because it imports Triton

    return kernel


def _forward(
    parts_BRD: torch.Tensor, theta_BRA: torch.Tensor, phi_BRA: torch.Tensor, rounds: int, path: str
) -> torch.Tensor:
    with torch.autocast(parts_BRD.device.type, enabled=False):
        mixed_BRD: torch.Tensor = _module(path).forward(parts_BRD, theta_BRA, phi_BRA, rounds)
        return mixed_BRD


def _fake(
    parts_BRD: torch.Tensor, theta_BRA: torch.Tensor, phi_BRA: torch.Tensor, rounds: int, path: str
) -> torch.Tensor:
    return torch.empty_like(parts_BRD, memory_format=torch.contiguous_format)


def _backward(
    grad_BRD: torch.Tensor,
    parts_BRD: torch.Tensor,
    theta_BRA: torch.Tensor,
    phi_BRA: torch.Tensor,
    rounds: int,
    path: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    with torch.autocast(parts_BRD.device.type, enabled=False):
        d_parts, d_theta, d_phi = _module(path).backward(grad_BRD, parts_BRD, theta_BRA, phi_BRA, rounds)
        return d_parts, d_theta, d_phi


def _backward_fake(grad_BRD: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs[:3])


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, ctx.rounds, ctx.path = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(backward: Callable[..., Any], ctx: Any, grad_BRD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return *backward(grad_BRD, *ctx.saved_tensors, ctx.rounds, ctx.path), None, None


_operator = Operator("ring_aggregate", _forward, _fake, _backward, _backward_fake, _save, _differentiate)
