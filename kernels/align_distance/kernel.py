"""The alignment distance in Triton: scores and Gram matrices as tiled products, the quadratic form on whole rows.

P G is summed from float32 (three TF32 products, or exact), never rounded to half. Rows where w lies so near f that the
form cancels are warped and subtracted instead, channel tile by channel tile; nothing of size N x L x C is ever written.
Legend: B images, L positions (p of the anchor, s of the target), C channels, N pairs.
"""
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl

from kernels.common import CANCELS
from kernels.common.kernel import (
    TILES,
    Tile,
    gradient,
    inverse,
    lists,
    load_tile,
    norms,
    pair_rows,
    precision,
    row_block,
    scores,
    softmax_rows,
)

CHOICES = TILES


@triton.jit
def _times_gram(p_similarity, p_gram, p, log_sum, L, beta, PRECISION: tl.constexpr,
                BLOCK_P: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_S: tl.constexpr):  # fmt: skip
    """P G for whole rows p, the probabilities made again BLOCK_S at a time."""
    column = tl.arange(0, BLOCK_L)
    acc = tl.zeros((BLOCK_P, BLOCK_L), tl.float32)
    for first in range(0, L, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)
        score = load_tile(p_similarity, p, s, L, L, L) * beta
        weight = tl.where(s[None, :] < L, tl.exp(score - log_sum[:, None]), 0.0)
        acc = tl.dot(weight, load_tile(p_gram, s, column, L, L, L), acc, input_precision=PRECISION)
    return acc


@triton.jit
def _warped_square(p_similarity, p_own, p_other, p, log_sum, L, C, beta, PRECISION: tl.constexpr,
                   BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr):  # fmt: skip
    """|f - P f_k|^2 of rows p, channel tile by channel tile."""
    total = tl.zeros((BLOCK_P,), tl.float32)
    for channel in range(0, C, BLOCK_C):
        c = channel + tl.arange(0, BLOCK_C)
        acc = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        for first in range(0, L, BLOCK_S):
            s = first + tl.arange(0, BLOCK_S)
            score = load_tile(p_similarity, p, s, L, L, L) * beta
            weight = tl.where(s[None, :] < L, tl.exp(score - log_sum[:, None]), 0.0)
            value = load_tile(p_other, s, c, L, C, C).to(tl.float32)
            acc = tl.dot(weight, value, acc, input_precision=PRECISION)
        shift = acc - load_tile(p_own, p, c, L, C, C).to(tl.float32)
        total += tl.sum(shift * shift, axis=1)
    return total


@triton.jit
def distance_kernel(
    p_f, p_norm, p_mask, p_anchor, p_target, p_similarity, p_gram, p_distance, p_root, B, L, C, beta, cancels,
    PRECISION: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(1).to(tl.int64)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    s = tl.arange(0, BLOCK_L)
    a, k, valid = pair_rows(p_anchor, p_target, n, B)
    p_pair = p_similarity + n * L * L
    similarity, probability, log_sum = softmax_rows(p_pair, p, L, beta, BLOCK_P, BLOCK_L)
    norm_a = tl.load(p_norm + a * L + p, mask=p < L, other=0.0)
    norm_k = tl.load(p_norm + k * L + s, mask=s < L, other=0.0)
    product = similarity * norm_a[:, None] * norm_k[None, :]
    quad = _times_gram(p_pair, p_gram + k * L * L, p, log_sum, L, beta, PRECISION, BLOCK_P, BLOCK_L, BLOCK_S)
    square = norm_a * norm_a + tl.sum(probability * (quad - 2.0 * product), axis=1)
    near = (square < cancels * norm_a * norm_a) & (p < L)
    if tl.max(near.to(tl.int32), axis=0) == 1:
        exact = _warped_square(
            p_pair, p_f + a * L * C, p_f + k * L * C, p, log_sum, L, C, beta, PRECISION, BLOCK_P, BLOCK_S, 64
        )
        square = tl.where(near, exact, square)
    root = tl.sqrt(square)
    floor = 1e-6 * tl.maximum(norm_a, 1e-12)
    m = tl.load(p_mask + a * L + p, mask=p < L, other=0.0)
    # written so that NaN stays NaN
    tl.store(p_distance + n * L + p, m * tl.where(root < floor, floor, root), mask=p < L)
    tl.store(p_root + n * L + p, root, mask=p < L)


@triton.jit
def rows_backward_kernel(
    p_norm, p_anchor, p_target, p_similarity, p_gram, p_slope, p_probability, p_sloped, p_e, p_along_a, p_along_k,
    B, L, beta,
    PRECISION: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """dP = slope (P G - A), through the softmax, and E = dS / (|f_a| |f_k|) - slope P for the products."""
    n = tl.program_id(1).to(tl.int64)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    s = tl.arange(0, BLOCK_L)
    a, k, valid = pair_rows(p_anchor, p_target, n, B)
    p_pair = p_similarity + n * L * L
    similarity, probability, log_sum = softmax_rows(p_pair, p, L, beta, BLOCK_P, BLOCK_L)
    quad = _times_gram(p_pair, p_gram + k * L * L, p, log_sum, L, beta, PRECISION, BLOCK_P, BLOCK_L, BLOCK_S)
    norm_a = tl.load(p_norm + a * L + p, mask=p < L, other=0.0)
    norm_k = tl.load(p_norm + k * L + s, mask=s < L, other=0.0)
    slope = tl.load(p_slope + n * L + p, mask=p < L, other=0.0)
    d_probability = slope[:, None] * (quad - similarity * norm_a[:, None] * norm_k[None, :])
    grad = probability * (d_probability - tl.sum(probability * d_probability, axis=1)[:, None]) * beta
    inverse_a = inverse(norm_a)
    inverse_k = inverse(norm_k)
    along = tl.where(p[:, None] < L, grad * similarity, 0.0)
    tl.store(p_along_a + n * L + p, tl.sum(along, axis=1) * inverse_a * inverse_a - slope, mask=p < L)
    o_along = (n * tl.num_programs(0) + tl.program_id(0)) * L + s
    tl.store(p_along_k + o_along, tl.sum(along, axis=0) * inverse_k * inverse_k, mask=s < L)
    inside = (p[:, None] < L) & (s[None, :] < L)
    o_out = n * L * L + p[:, None] * L + s[None, :]
    e = grad * inverse_a[:, None] * inverse_k[None, :] - slope[:, None] * probability
    tl.store(p_e + o_out, e.to(p_e.dtype.element_ty), mask=inside)
    tl.store(p_probability + o_out, probability.to(p_probability.dtype.element_ty), mask=inside)
    tl.store(p_sloped + o_out, (slope[:, None] * probability).to(p_sloped.dtype.element_ty), mask=inside)


@triton.jit
def gram_gradient_kernel(
    p_probability, p_sloped, p_list, p_count, p_out, N, L, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """For one target image the sum over its pairs of P^T slope P, pairs ascending."""
    i_image = tl.program_id(1).to(tl.int64)
    tiles = tl.cdiv(L, BLOCK_S)
    p = tl.program_id(0) // tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    s = tl.program_id(0) % tiles * BLOCK_S + tl.arange(0, BLOCK_S)
    acc = tl.zeros((BLOCK_P, BLOCK_S), tl.float32)
    for j in range(tl.load(p_count + i_image)):
        n = tl.load(p_list + i_image * N + j).to(tl.int64)
        for first in range(0, L, BLOCK_Q):
            q = first + tl.arange(0, BLOCK_Q)
            x = load_tile(p_sloped + n * L * L, q, p, L, L, L)
            y = load_tile(p_probability + n * L * L, q, s, L, L, L)
            acc = tl.dot(tl.trans(x), y, acc, input_precision=PRECISION)
    inside = (p[:, None] < L) & (s[None, :] < L)
    o_out = i_image * L * L + p[:, None] * L + s[None, :]
    tl.store(p_out + o_out, acc.to(p_out.dtype.element_ty), mask=inside)


def _quadratic(dtype: torch.dtype) -> str:
    """How P G is multiplied: near float32 on tensor cores, or exactly where float32 products are to be exact."""
    return "ieee" if precision(dtype) == "ieee" else "tf32x3"


def forward(
    features_BLC: torch.Tensor, mask_BL: torch.Tensor, anchor_N: torch.Tensor, target_N: torch.Tensor, beta: float,
    tile: Tile = CHOICES[0],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """distance NxL; for backward |f - w| NxL, the similarities NxLxL and the Gram matrices BxLxL."""
    features, mask = features_BLC.contiguous(), mask_BL.float().contiguous()
    pairs, (images, length, channels) = len(anchor_N), features.shape
    distance, root = (features.new_empty(pairs, length, dtype=torch.float32) for _ in range(2))
    if not pairs:
        empty = [features.new_zeros(size, length, length, dtype=torch.float32) for size in (0, images)]
        return distance, root, empty[0], empty[1]
    norm = norms(features)
    similarity = scores(features, norm, anchor_N, target_N, tile)
    gram = scores(features, norm, anchor_N, target_N, tile, cosine=False)
    block_p, block_l, warps = row_block(length)
    distance_kernel[(triton.cdiv(length, block_p), pairs)](
        features, norm, mask, anchor_N, target_N, similarity, gram, distance, root, images, length, channels, beta,
        CANCELS, _quadratic(features.dtype), block_p, block_l, 16, num_warps=warps, enable_fp_fusion=True,
    )  # fmt: skip
    return distance, root, similarity, gram


def backward(
    grad_distance_NL: torch.Tensor, features_BLC: torch.Tensor, mask_BL: torch.Tensor, anchor_N: torch.Tensor,
    target_N: torch.Tensor, beta: float, root_NL: torch.Tensor, similarity_NLL: torch.Tensor, gram_BLL: torch.Tensor,
    tile: Tile = CHOICES[0],
) -> torch.Tensor:  # fmt: skip
    """The gradient of the features, B x L x C in their dtype."""
    features = features_BLC.contiguous()
    pairs, (images, length, _) = len(anchor_N), features.shape
    if not pairs:
        return torch.zeros_like(features)
    norm = norms(features)
    counts = root_NL > 1e-6 * norm[anchor_N].clamp_min(1e-12)
    slope = torch.where(counts, grad_distance_NL * mask_BL.float()[anchor_N] / root_NL, 0.0)
    block_p, block_l, warps = row_block(length)
    e, along_a = torch.empty_like(similarity_NLL, dtype=features.dtype), torch.empty_like(root_NL)
    probability, sloped = torch.empty_like(e), torch.empty_like(e)
    along_k = root_NL.new_empty(pairs, triton.cdiv(length, block_p), length)
    rows_backward_kernel[(triton.cdiv(length, block_p), pairs)](
        norm, anchor_N, target_N, similarity_NLL, gram_BLL, slope, probability, sloped, e, along_a, along_k,
        images, length, beta, _quadratic(features.dtype), block_p, block_l, 16, num_warps=warps, enable_fp_fusion=True,
    )  # fmt: skip
    listed, fitted = lists(target_N, images), tile.fits(features.dtype)
    grad_gram = torch.empty_like(gram_BLL, dtype=features.dtype)
    gram_gradient_kernel[(triton.cdiv(length, fitted.rows) * triton.cdiv(length, fitted.columns), images)](
        probability, sloped, *listed, grad_gram, pairs, length, precision(features.dtype),
        fitted.rows, fitted.columns, fitted.summed, num_warps=fitted.warps, num_stages=fitted.stages,
        enable_fp_fusion=True,
    )  # fmt: skip
    return gradient(features, anchor_N, target_N, e, along_a, along_k, None, grad_gram, listed, tile)
