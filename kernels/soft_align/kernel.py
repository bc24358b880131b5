"""Soft alignment in Triton: scores, softmax rows, warp with mask and blend; and their backward.

Gathers by pair row happen in the loads; the N x L x C reconstruction is written once, in the next layer's layout.
For backward the float32 similarities are kept (N x L x L) and the probabilities made again from them.
Legend: B images, L positions (p of the anchor, s of the target), C channels, N pairs.
"""
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl

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
def rows_kernel(
    p_similarity, p_mask, p_anchor, p_target, p_probability, p_seen, B, L, beta,
    BLOCK_P: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """Probabilities in the products' dtype, and m_a(p) sum_s P m_k(s), the co-mask before its min-max."""
    n = tl.program_id(1)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    s = tl.arange(0, BLOCK_L)
    a, k, valid = pair_rows(p_anchor, p_target, n, B)
    o_pair = n.to(tl.int64) * L * L
    similarity, probability, log_sum = softmax_rows(p_similarity + o_pair, p, L, beta, BLOCK_P, BLOCK_L)
    mask_k = tl.load(p_mask + k * L + s, mask=s < L, other=0.0)
    mask_a = tl.load(p_mask + a * L + p, mask=p < L, other=0.0)
    tl.store(p_seen + n * L + p, mask_a * tl.sum(probability * mask_k[None, :], axis=1), mask=p < L)
    inside = (p[:, None] < L) & (s[None, :] < L)
    o_probability = o_pair + p[:, None] * L + s[None, :]
    tl.store(p_probability + o_probability, probability.to(p_probability.dtype.element_ty), mask=inside)


@triton.jit
def warp_kernel(
    p_f, p_mask, p_anchor, p_target, p_probability, p_out, p_square, B, L, C,
    PRECISION: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """f + m (P f_k - f), and this tile's channels' share of |P f_k - f|^2."""
    n = tl.program_id(1).to(tl.int64)
    tiles = tl.cdiv(C, BLOCK_C)
    i_c = tl.program_id(0) % tiles
    p = tl.program_id(0) // tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    a, k, valid = pair_rows(p_anchor, p_target, n, B)
    acc = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for first in range(0, L, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)
        probability = load_tile(p_probability + n * L * L, p, s, L, L, L)
        acc = tl.dot(probability, load_tile(p_f + k * L * C, s, c, L, C, C), acc, input_precision=PRECISION)
    own = load_tile(p_f + a * L * C, p, c, L, C, C).to(tl.float32)
    shift = acc - own
    m = tl.load(p_mask + a * L + p, mask=p < L, other=0.0)
    inside = (p[:, None] < L) & (c[None, :] < C)
    o_out = n * L * C + p[:, None] * C + c[None, :]
    tl.store(p_out + o_out, (own + m[:, None] * shift).to(p_out.dtype.element_ty), mask=inside)
    tl.store(p_square + (n * tiles + i_c) * L + p, tl.sum(shift * shift, axis=1), mask=p < L)


@triton.jit
def finish_kernel(
    p_square, p_seen, p_norm, p_mask, p_anchor, p_target, p_distance, p_comask, p_root, B, L, tiles,
    BLOCK_L: tl.constexpr,
):  # fmt: skip
    """One pair: the distance from its shares, and the min-max of the co-mask."""
    n = tl.program_id(0).to(tl.int64)
    p = tl.arange(0, BLOCK_L)
    a, k, valid = pair_rows(p_anchor, p_target, n, B)
    square = tl.zeros((BLOCK_L,), tl.float32)
    for tile in range(tiles):
        square += tl.load(p_square + (n * tiles + tile) * L + p, mask=p < L, other=0.0)
    root = tl.sqrt(square)
    floor = 1e-6 * tl.maximum(tl.load(p_norm + a * L + p, mask=p < L, other=0.0), 1e-12)
    m = tl.load(p_mask + a * L + p, mask=p < L, other=0.0)
    # written so that NaN stays NaN
    tl.store(p_distance + n * L + p, m * tl.where(root < floor, floor, root), mask=p < L)
    tl.store(p_root + n * L + p, root, mask=p < L)
    seen = tl.load(p_seen + n * L + p, mask=p < L, other=0.0)
    low = tl.min(tl.where(p < L, seen, float("inf")), axis=0)
    high = tl.max(tl.where(p < L, seen, float("-inf")), axis=0)
    tl.store(p_comask + n * L + p, (seen - low) / (high - low + 1e-12), mask=p < L)


@triton.jit
def warp_gradient_kernel(
    p_f, p_mask, p_anchor, p_target, p_grad, p_reconstruction, p_slope, p_out, B, L, C,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dw = m grad + slope (reconstruction - f), once, because three products read it."""
    n = tl.program_id(1).to(tl.int64)
    tiles = tl.cdiv(C, BLOCK_C)
    p = tl.program_id(0) // tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(0) % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    a, k, valid = pair_rows(p_anchor, p_target, n, B)
    own = load_tile(p_f + a * L * C, p, c, L, C, C).to(tl.float32)
    grad = load_tile(p_grad + n * L * C, p, c, L, C, C).to(tl.float32)
    rebuilt = load_tile(p_reconstruction + n * L * C, p, c, L, C, C).to(tl.float32)
    m = tl.load(p_mask + a * L + p, mask=p < L, other=0.0)
    slope = tl.load(p_slope + n * L + p, mask=p < L, other=0.0)
    dw = m[:, None] * grad + slope[:, None] * (rebuilt - own)
    inside = (p[:, None] < L) & (c[None, :] < C)
    tl.store(p_out + n * L * C + p[:, None] * C + c[None, :], dw.to(p_out.dtype.element_ty), mask=inside)


@triton.jit
def probability_gradient_kernel(
    p_f, p_anchor, p_target, p_dw, p_out, B, L, C,
    PRECISION: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dP[n] = dw f_k^T."""
    n = tl.program_id(1).to(tl.int64)
    tiles = tl.cdiv(L, BLOCK_S)
    p = tl.program_id(0) // tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    s = tl.program_id(0) % tiles * BLOCK_S + tl.arange(0, BLOCK_S)
    a, k, valid = pair_rows(p_anchor, p_target, n, B)
    acc = tl.zeros((BLOCK_P, BLOCK_S), tl.float32)
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        dw = load_tile(p_dw + n * L * C, p, c, L, C, C)
        y = load_tile(p_f + k * L * C, s, c, L, C, C)
        acc = tl.dot(dw, tl.trans(y), acc, input_precision=PRECISION)
    inside = (p[:, None] < L) & (s[None, :] < L)
    tl.store(p_out + n * L * L + p[:, None] * L + s[None, :], acc, mask=inside)


@triton.jit
def rows_backward_kernel(
    p_similarity, p_d_probability, p_norm, p_anchor, p_target, p_probability, p_e, p_along_a, p_along_k, B, L, beta,
    BLOCK_P: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """Through the softmax: dS; E = dS / (|f_a| |f_k|) for the products; what normalising takes out."""
    n = tl.program_id(1).to(tl.int64)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    s = tl.arange(0, BLOCK_L)
    a, k, valid = pair_rows(p_anchor, p_target, n, B)
    similarity, probability, log_sum = softmax_rows(p_similarity + n * L * L, p, L, beta, BLOCK_P, BLOCK_L)
    d_probability = load_tile(p_d_probability + n * L * L, p, s, L, L, L)
    grad = probability * (d_probability - tl.sum(probability * d_probability, axis=1)[:, None]) * beta
    inverse_a = inverse(tl.load(p_norm + a * L + p, mask=p < L, other=0.0))
    inverse_k = inverse(tl.load(p_norm + k * L + s, mask=s < L, other=0.0))
    along = tl.where(p[:, None] < L, grad * similarity, 0.0)
    tl.store(p_along_a + n * L + p, tl.sum(along, axis=1) * inverse_a * inverse_a, mask=p < L)
    o_along = (n * tl.num_programs(0) + tl.program_id(0)) * L + s
    tl.store(p_along_k + o_along, tl.sum(along, axis=0) * inverse_k * inverse_k, mask=s < L)
    inside = (p[:, None] < L) & (s[None, :] < L)
    o_out = n * L * L + p[:, None] * L + s[None, :]
    e = grad * inverse_a[:, None] * inverse_k[None, :]
    tl.store(p_e + o_out, e.to(p_e.dtype.element_ty), mask=inside)
    tl.store(p_probability + o_out, probability.to(p_probability.dtype.element_ty), mask=inside)


def forward(
    features_BLC: torch.Tensor, mask_BL: torch.Tensor, anchor_N: torch.Tensor, target_N: torch.Tensor, beta: float,
    tile: Tile = CHOICES[0],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """reconstruction NxLxC, distance NxL, co-mask NxL, and for backward |f - w| NxL and the similarities NxLxL."""
    features, mask = features_BLC.contiguous(), mask_BL.float().contiguous()
    pairs, (images, length, channels) = len(anchor_N), features.shape
    reconstruction = features.new_empty(pairs, length, channels)
    distance, comask, root, seen = (features.new_empty(pairs, length, dtype=torch.float32) for _ in range(4))
    if not pairs:
        return reconstruction, distance, comask, root, features.new_empty(0, length, length, dtype=torch.float32)
    norm = norms(features)
    similarity = scores(features, norm, anchor_N, target_N, tile)
    probability = torch.empty_like(similarity, dtype=features.dtype)
    block_p, block_l, warps = row_block(length)
    rows_kernel[(triton.cdiv(length, block_p), pairs)](
        similarity, mask, anchor_N, target_N, probability, seen, images, length, beta, block_p, block_l,
        num_warps=warps, enable_fp_fusion=True,
    )  # fmt: skip
    tile = tile.fits(features.dtype)
    tiles = triton.cdiv(channels, tile.columns)
    square = features.new_empty(pairs, tiles, length, dtype=torch.float32)
    warp_kernel[(triton.cdiv(length, tile.rows) * tiles, pairs)](
        features, mask, anchor_N, target_N, probability, reconstruction, square, images, length, channels,
        precision(features.dtype), tile.rows, tile.columns, tile.summed,
        num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
    )  # fmt: skip
    finish_kernel[(pairs,)](
        square, seen, norm, mask, anchor_N, target_N, distance, comask, root, images, length, tiles, block_l,
        num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return reconstruction, distance, comask, root, similarity


def backward(
    grad_reconstruction_NLC: torch.Tensor, grad_distance_NL: torch.Tensor, features_BLC: torch.Tensor,
    mask_BL: torch.Tensor, anchor_N: torch.Tensor, target_N: torch.Tensor, beta: float,
    reconstruction_NLC: torch.Tensor, root_NL: torch.Tensor, similarity_NLL: torch.Tensor, tile: Tile = CHOICES[0],
) -> torch.Tensor:  # fmt: skip
    """The gradient of the features, B x L x C in their dtype."""
    features, mask = features_BLC.contiguous(), mask_BL.float().contiguous()
    pairs, (images, length, channels) = len(anchor_N), features.shape
    if not pairs:
        return torch.zeros_like(features)
    grad, norm = grad_reconstruction_NLC.to(features.dtype).contiguous(), norms(features)
    counts = root_NL > 1e-6 * norm[anchor_N].clamp_min(1e-12)
    slope = torch.where(counts, grad_distance_NL / root_NL, 0.0)
    d_probability, e = torch.empty_like(similarity_NLL), torch.empty_like(similarity_NLL, dtype=features.dtype)
    fitted = tile.fits(features.dtype)
    dw = torch.empty_like(reconstruction_NLC)
    warp_gradient_kernel[(triton.cdiv(length, 16) * triton.cdiv(channels, 256), pairs)](
        features, mask, anchor_N, target_N, grad, reconstruction_NLC, slope, dw, images, length, channels, 16, 256,
        num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    probability_gradient_kernel[(triton.cdiv(length, fitted.rows) * triton.cdiv(length, fitted.columns), pairs)](
        features, anchor_N, target_N, dw, d_probability, images, length, channels,
        precision(features.dtype), fitted.rows, fitted.columns, fitted.summed,
        num_warps=fitted.warps, num_stages=fitted.stages, enable_fp_fusion=True,
    )  # fmt: skip
    block_p, block_l, warps = row_block(length)
    probability, along_a = torch.empty_like(e), torch.empty_like(root_NL)
    along_k = root_NL.new_empty(pairs, triton.cdiv(length, block_p), length)
    rows_backward_kernel[(triton.cdiv(length, block_p), pairs)](
        similarity_NLL, d_probability, norm, anchor_N, target_N, probability, e, along_a, along_k, images, length, beta,
        block_p, block_l, num_warps=warps, enable_fp_fusion=True,
    )  # fmt: skip
    blend = (probability, grad, dw)
    listed = lists(target_N, images)
    return gradient(features, anchor_N, target_N, e, along_a, along_k, blend, None, listed, tile)
