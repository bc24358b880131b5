"""Cyclic aggregation in plain PyTorch with the rounds composed into one matrix (method §5.2).

A round mixes rows, W u, and mixing rows commutes with the linear projections. The rounds therefore run on theta and phi
(R x A), and their product M = W_last ... W_1 (R x R) is applied to the parts once in the forward and in the backward.
Legend: B images, R parts, D node width, A projection width.
"""

import torch

from kernels.common.dtypes import compute_dtype


def forward(parts_BRD: torch.Tensor, theta_BRA: torch.Tensor, phi_BRA: torch.Tensor, rounds: int) -> torch.Tensor:
    """u after the rounds, B x R x D in the parts' dtype."""
    mixing = _rounds(theta_BRA, phi_BRA, rounds, compute_dtype(parts_BRD))[0]
    return (mixing @ parts_BRD.to(mixing.dtype)).to(parts_BRD.dtype)


def backward(
    grad_BRD: torch.Tensor, parts_BRD: torch.Tensor, theta_BRA: torch.Tensor, phi_BRA: torch.Tensor, rounds: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of parts, theta and phi; the rounds on the small projections are run again rather than saved."""
    mixing, steps = _rounds(theta_BRA, phi_BRA, rounds, compute_dtype(parts_BRD))
    grad, parts = grad_BRD.to(mixing.dtype), parts_BRD.to(mixing.dtype)
    grad_mixing, grad_theta, grad_phi = grad @ parts.mT, torch.zeros_like(steps[0][1]), torch.zeros_like(steps[0][2])
    for weight, theta, phi, before in reversed(steps):
        grad_weight = grad_mixing @ before.mT + grad_theta @ theta.mT + grad_phi @ phi.mT
        score = weight * (grad_weight - (weight * grad_weight).sum(-1, keepdim=True)) / theta.shape[-1] ** 0.5
        grad_mixing, grad_theta, grad_phi = (weight.mT @ g for g in (grad_mixing, grad_theta, grad_phi))
        grad_theta, grad_phi = grad_theta + score @ phi, grad_phi + score.mT @ theta
    grad_parts = (mixing.mT @ grad).to(parts_BRD.dtype)
    return grad_parts, grad_theta.to(theta_BRA.dtype), grad_phi.to(phi_BRA.dtype)


def _rounds(
    theta_BRA: torch.Tensor, phi_BRA: torch.Tensor, rounds: int, dtype: torch.dtype
) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]]:
    """The composed R x R matrix, and for each round its weights with the theta, phi and matrix it began with."""
    theta, phi = theta_BRA.to(dtype), phi_BRA.to(dtype)
    part = torch.arange(theta.shape[1], device=theta.device)
    apart = (part.unsqueeze(1) - part).remainder(len(part))
    far = (apart > 1) & (apart < len(part) - 1)
    mixing = torch.eye(len(part), dtype=dtype, device=theta.device).expand(len(theta), -1, -1)
    steps = []
    for _ in range(rounds):
        score = (theta @ phi.mT / theta.shape[-1] ** 0.5).masked_fill(far, float("-inf"))
        weight = torch.softmax(score, dim=-1)
        steps.append((weight, theta, phi, mixing))
        mixing, theta, phi = weight @ mixing, weight @ theta, weight @ phi
    return mixing, steps
