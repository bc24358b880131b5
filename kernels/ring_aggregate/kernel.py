"""Cyclic aggregation in Triton: every round inside one launch, each way (derivation: README.md beside this file).

Theta and phi of round t are M_t theta and M_t phi, where M_t is the product of the mixing so far. So the scores of each
round are M_t S_0 M_t^T with S_0 = theta phi^T: after one read of theta and phi, all rounds work on R x R numbers in
registers.
Legend: B images, R parts (padded to BLOCK_R), D node width, A projection width.
"""
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl

from kernels.common.launch_kernel import Launches
from kernels.common.sizes import ceil_div, power_of_two

# (numbers of an R x R x block product at once, warps); the first is the default.
CHOICES = ((8192, 4), (4096, 2))


@triton.jit
def _product(a_IJ, b_JK):
    """a b in float32. From 16 rows on, Triton would compute the sum in TF32 (3 digits), so request exact float32."""
    if a_IJ.shape[0] >= 16:
        return tl.dot(a_IJ, b_JK, input_precision="ieee")
    return tl.sum(a_IJ[:, :, None] * b_JK[None, :, :], axis=1)


@triton.jit
def _outer(p_x, p_y, i_image, R, width, stride, BLOCK_R: tl.constexpr, BLOCK: tl.constexpr):
    """x y^T over the last dimension, R x R, float32. Their rows are `stride` numbers apart."""
    r = tl.arange(0, BLOCK_R)
    total = tl.zeros((BLOCK_R, BLOCK_R), tl.float32)
    for first in range(0, width, BLOCK):
        d = first + tl.arange(0, BLOCK)
        m_x = (r[:, None] < R) & (d[None, :] < width)
        o_x = (i_image * R + r[:, None]) * stride + d[None, :]
        x = tl.load(p_x + o_x, mask=m_x, other=0.0).to(tl.float32)
        y = tl.load(p_y + o_x, mask=m_x, other=0.0).to(tl.float32)
        total += tl.sum(x[:, None, :] * y[None, :, :], axis=2)
    return total


@triton.jit
def _mix_store(p_out, p_x, mixing_RR, i_image, R, width, stride, first, BLOCK_R: tl.constexpr, BLOCK: tl.constexpr):
    """out = mixing x, for BLOCK columns from `first`. The rows of x are `stride` numbers apart."""
    r = tl.arange(0, BLOCK_R)
    d = first + tl.arange(0, BLOCK)
    m_x = (r[:, None] < R) & (d[None, :] < width)
    row = i_image * R + r[:, None]
    out = _product(mixing_RR, tl.load(p_x + row * stride + d[None, :], mask=m_x, other=0.0).to(tl.float32))
    tl.store(p_out + row * width + d[None, :], out.to(p_out.dtype.element_ty), mask=m_x)


@triton.jit
def _weight(score_RR, mixing_RR, R, BLOCK_R: tl.constexpr):
    """The softmax over {i, i-1, i+1 mod R} of this round's scores; padding rows attend only to themselves."""
    i = tl.arange(0, BLOCK_R)[:, None]
    j = tl.arange(0, BLOCK_R)[None, :]
    near = ((j == (i + 1) % R) | (j == (i + R - 1) % R)) & (i < R) & (j < R)
    score = _product(_product(mixing_RR, score_RR), tl.trans(mixing_RR))
    score = tl.where(near | (i == j), score, float("-inf"))
    weight = tl.exp(score - tl.max(score, axis=1)[:, None])
    return weight / tl.sum(weight, axis=1)[:, None]


@triton.jit
def _mixing(score_RR, rounds, R, BLOCK_R: tl.constexpr):
    i = tl.arange(0, BLOCK_R)
    mixing = tl.where(i[:, None] == i[None, :], 1.0, 0.0)
    for _ in range(rounds):
        mixing = _product(_weight(score_RR, mixing, R, BLOCK_R), mixing)
    return mixing


@triton.jit
def forward_kernel(
    p_u, p_theta, p_phi, p_out, rounds, scale, R, D, A, stride, BLOCK_R: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    i_image = tl.program_id(0).to(tl.int64)
    score = _outer(p_theta, p_phi, i_image, R, A, stride, BLOCK_R, BLOCK) * scale
    mixing = _mixing(score, rounds, R, BLOCK_R)
    _mix_store(p_out, p_u, mixing, i_image, R, D, D, tl.program_id(1) * BLOCK, BLOCK_R, BLOCK)


@triton.jit
def backward_kernel(
    p_grad, p_u, p_theta, p_phi, p_du, p_dtheta, p_dphi, rounds, scale, R, D, A, stride,
    BLOCK_R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i_image = tl.program_id(0).to(tl.int64)
    score = _outer(p_theta, p_phi, i_image, R, A, stride, BLOCK_R, BLOCK) * scale
    d_mixing = _outer(p_grad, p_u, i_image, R, D, D, BLOCK_R, BLOCK)
    turned = tl.trans(_mixing(score, rounds, R, BLOCK_R))
    for first in range(0, D, BLOCK):
        _mix_store(p_du, p_grad, turned, i_image, R, D, D, first, BLOCK_R, BLOCK)
    d_score = tl.zeros((BLOCK_R, BLOCK_R), tl.float32)
    for back in range(rounds):
        before = _mixing(score, rounds - 1 - back, R, BLOCK_R)
        weight = _weight(score, before, R, BLOCK_R)
        d_weight = _product(d_mixing, tl.trans(before))
        d_round = weight * (d_weight - tl.sum(weight * d_weight, axis=1)[:, None])
        d_score += _product(_product(tl.trans(before), d_round), before)
        along = _product(_product(d_round, before), tl.trans(score))
        d_mixing = _product(tl.trans(weight), d_mixing) + along + _product(_product(tl.trans(d_round), before), score)
    d_score *= scale
    for first in range(0, A, BLOCK):
        _mix_store(p_dtheta, p_phi, d_score, i_image, R, A, stride, first, BLOCK_R, BLOCK)
        _mix_store(p_dphi, p_theta, tl.trans(d_score), i_image, R, A, stride, first, BLOCK_R, BLOCK)


def _blocks(parts: int, choice: tuple[int, int]) -> tuple[int, int]:
    block_r = max(power_of_two(parts), 4)
    return block_r, max(choice[0] // block_r**2, 16)


def _projections(theta_BRA: torch.Tensor, phi_BRA: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Theta, phi and the stride of their rows; the two halves of one product are read in place."""
    stride = theta_BRA.stride(1)
    if theta_BRA.stride() == phi_BRA.stride() == (theta_BRA.shape[1] * stride, stride, 1):
        return theta_BRA, phi_BRA, stride
    return theta_BRA.contiguous(), phi_BRA.contiguous(), theta_BRA.shape[-1]


_forward_launches, _backward_launches = Launches(), Launches()


def forward(
    parts_BRD: torch.Tensor, theta_BRA: torch.Tensor, phi_BRA: torch.Tensor, rounds: int,
    choice: tuple[int, int] = CHOICES[0],
) -> torch.Tensor:  # fmt: skip
    """B x R x D in the parts' dtype."""
    (images, parts, width), projection = parts_BRD.shape, theta_BRA.shape[-1]
    out = torch.empty_like(parts_BRD, memory_format=torch.contiguous_format)
    block_r, block = _blocks(parts, choice)
    theta_BRA, phi_BRA, stride = _projections(theta_BRA, phi_BRA)
    if out.numel():
        inputs = parts_BRD.contiguous(), theta_BRA, phi_BRA
        launch = _forward_launches.of((parts_BRD.shape, projection, stride, rounds, choice), *inputs)
        launch(
            forward_kernel, (images, ceil_div(width, block)),
            *inputs, out, rounds, projection**-0.5,
            parts, width, projection, stride, block_r, block, num_warps=choice[1], enable_fp_fusion=True,
        )  # fmt: skip
    return out


def backward(
    grad_BRD: torch.Tensor, parts_BRD: torch.Tensor, theta_BRA: torch.Tensor, phi_BRA: torch.Tensor, rounds: int,
    choice: tuple[int, int] = CHOICES[0],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """The gradients of parts, theta and phi, each in the dtype of its input."""
    (images, parts, width), projection = parts_BRD.shape, theta_BRA.shape[-1]
    theta_BRA, phi_BRA, stride = _projections(theta_BRA, phi_BRA)
    inputs = [grad_BRD.contiguous(), parts_BRD.contiguous(), theta_BRA, phi_BRA]
    d_parts, d_theta, d_phi = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs[1:])
    block_r, block = _blocks(parts, choice)
    if images:
        launch = _backward_launches.of((parts_BRD.shape, projection, stride, rounds, choice), *inputs)
        launch(
            backward_kernel, (images,),
            *inputs, d_parts, d_theta, d_phi, rounds, projection**-0.5, parts, width, projection, stride,
            block_r, block, num_warps=choice[1], enable_fp_fusion=True,
        )  # fmt: skip
    return d_parts, d_theta, d_phi
