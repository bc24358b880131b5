"""The weights, the warp and the distance of the alignment's forward in Triton.

Derivation, bytes and FLOPs: README.md beside this file. Legend: tile_kernel.py.
"""
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from kernels.alignment.tile_kernel import load_tile, pair_number, pair_rows, store_tile


@triton.jit
def _scaled_scores(p_similarity, beta, p, s, L, LP):
    """beta S, and -inf in the columns of the padding."""
    return tl.where(s[None, :] < L, load_tile(p_similarity, p, s, L, LP, LP) * beta, float("-inf"))


@triton.jit
def _round_weights(score, top, p_weight, p_mask_k, p, s, L, LP):
    """Round and store the weights exp(beta S - top); return them, their sum, and their sum weighted by the mask."""
    weight = tl.exp(score - top[:, None]).to(p_weight.dtype.element_ty)
    store_tile(p_weight, p, s, L, LP, LP, weight)
    rounded = weight.to(tl.float32)
    mask_k = tl.load(p_mask_k + s, mask=s < L, other=0.0)
    return weight, tl.sum(rounded, axis=1), tl.sum(rounded * mask_k[None, :], axis=1)


@triton.jit
def _weights_of_rows(
    p_similarity, beta, p_weight, p_share, p_mask_k, m, p, s0, s1, L, LP, R1: tl.constexpr
):  # fmt: skip
    """Weights of whole rows in one or two tiles, the inverse of their sum, and the co-mask before its min-max.

    The weights and the inverse are stored too. The sum is taken over the rounded weights, so that w = f exactly where
    every averaged vector equals f.
    """
    score0 = _scaled_scores(p_similarity, beta, p, s0, L, LP)
    top = tl.max(score0, axis=1)
    if R1 > 0:
        score1 = _scaled_scores(p_similarity, beta, p, s1, L, LP)
        top = tl.maximum(top, tl.max(score1, axis=1))
    weight0, total, seen = _round_weights(score0, top, p_weight, p_mask_k, p, s0, L, LP)
    weight1 = weight0
    if R1 > 0:
        weight1, total1, seen1 = _round_weights(score1, top, p_weight, p_mask_k, p, s1, L, LP)
        total += total1
        seen += seen1
    share = 1.0 / total
    tl.store(p_share + p, share, mask=p < L)
    return weight0, weight1, share, m * seen / total


@triton.jit
def weights_kernel(
    p_similarity, p_mask, p_anchor, p_positive, p_negative, p_weight, p_share, p_seen, positives, B, L, LP, beta,
    BLOCK_P: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """Store the weights of some rows of a pair, the inverse of their sum, and the co-mask before its min-max."""
    n = tl.program_id(1).to(tl.int64)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    s = tl.arange(0, BLOCK_L)
    a, k, valid = pair_rows(p_anchor, p_positive, p_negative, n, positives, B)
    m = tl.load(p_mask + a * L + p, mask=p < L, other=0.0)
    _, _, _, seen = _weights_of_rows(
        p_similarity + n * L * LP, beta, p_weight + n * L * LP, p_share + n * L, p_mask + k * L, m, p, s, s, L, LP, 0
    )
    tl.store(p_seen + n * L + p, seen, mask=p < L)


@triton.jit
def _blend(acc, p_own, p_mask, p_share, p_out, p_square, p, c, L, C, kept):
    """Store f + m (w - f) if kept, and these channels' share of |w - f|^2."""
    own = load_tile(p_own, p, c, L, C, C).to(tl.float32)
    shift = acc * tl.load(p_share + p, mask=p < L, other=0.0)[:, None] - own
    m = tl.load(p_mask + p, mask=p < L, other=0.0)
    store_tile(p_out, p, c, tl.where(kept, L, 0), C, C, own + m[:, None] * shift)
    tl.store(p_square + p, tl.sum(shift * shift, axis=1), mask=p < L)


@triton.jit
def warp_kernel(
    p_f, p_mask, p_anchor, p_positive, p_negative, p_weight, p_share, p_out, p_square, positives, pairs, B, L, LP, C,
    PRECISION: tl.constexpr, R0: tl.constexpr, R1: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """w = P f_k for R0 + R1 rows of a pair and BLOCK_C channels: the blend of positives, |w - f|^2 of all pairs."""
    n = pair_number(tl.program_id(1), positives, pairs).to(tl.int64)
    tiles = tl.cdiv(C, BLOCK_C)
    i_c = tl.program_id(0) % tiles
    first_p = tl.program_id(0) // tiles * (R0 + R1)
    c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    a, k, valid = pair_rows(p_anchor, p_positive, p_negative, n, positives, B)
    p0 = first_p + tl.arange(0, R0)
    acc0 = tl.zeros((R0, BLOCK_C), tl.float32)
    if R1 > 0:
        p1 = first_p + R0 + tl.arange(0, R1)
        acc1 = tl.zeros((R1, BLOCK_C), tl.float32)
    for first in tl.range(0, LP, BLOCK_S, num_stages=STAGES):
        s = first + tl.arange(0, BLOCK_S)
        value = load_tile(p_f + k * L * C, s, c, L, C, C)
        weight0 = load_tile(p_weight + n * L * LP, p0, s, L, LP, LP)
        acc0 = tl.dot(weight0, value, acc0, input_precision=PRECISION)
        if R1 > 0:
            weight1 = load_tile(p_weight + n * L * LP, p1, s, L, LP, LP)
            acc1 = tl.dot(weight1, value, acc1, input_precision=PRECISION)
    p_own = p_f + a * L * C
    o_square = (n * tiles + i_c) * L
    _blend(acc0, p_own, p_mask + a * L, p_share + n * L, p_out + n * L * C, p_square + o_square, p0, c, L, C,
           n < positives)  # fmt: skip
    if R1 > 0:
        _blend(acc1, p_own, p_mask + a * L, p_share + n * L, p_out + n * L * C, p_square + o_square, p1, c, L, C,
               n < positives)  # fmt: skip


@triton.jit
def _store_distance(square, m, p_norm, p_near, p_far, p_root, n, positives, p, L):
    """The distance of a pair's rows from |f - w|^2, at least 1e-6 of the norm, and |f - w| itself."""
    root = tl.sqrt(square)
    floor = 1e-6 * tl.maximum(tl.load(p_norm + p, mask=p < L, other=0.0), 1e-12)
    distance = m * tl.where(root < floor, floor, root)  # written so that NaN stays NaN
    kept = n < positives
    tl.store(p_near + n * L + p, distance, mask=p < tl.where(kept, L, 0))
    tl.store(p_far + (n - positives) * L + p, distance, mask=p < tl.where(kept, 0, L))
    tl.store(p_root + n * L + p, root, mask=p < L)


@triton.jit
def _range(seen, p, L):
    """The smallest and the largest number of a co-mask before its min-max."""
    inside = p < L
    low = tl.min(tl.where(inside, seen, float("inf")), axis=0)
    return low, tl.max(tl.where(inside, seen, float("-inf")), axis=0)


@triton.jit
def _store_comask(seen, low, high, p_comask, p, rows):
    tl.store(p_comask + p, (seen - low) / (high - low + 1e-12), mask=p < rows)


@triton.jit
def _blend_part(acc, own, m, share, p_out, p, c, L, C, kept):
    own = own.to(tl.float32)
    shift = acc * share[:, None] - own
    store_tile(p_out, p, c, tl.where(kept, L, 0), C, C, own + m[:, None] * shift)
    return tl.sum(shift * shift, axis=1)


@triton.jit
def warp_whole_kernel(
    p_f, p_mask, p_anchor, p_positive, p_negative, p_weight, p_share, p_out, p_square, p_similarity, p_norm, p_near,
    p_far, p_comask, p_root, positives, pairs, B, L, LP, C, PART, beta, ALONE: tl.constexpr,
    R0: tl.constexpr, R1: tl.constexpr, BLOCK_C: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Like `warp_kernel` for a whole pair: its weights stay on the chip while the program iterates over PART channels.

    If the program is ALONE and processes all channels, it also makes the weights before and finishes the pair after.
    """
    n = pair_number(tl.program_id(1), positives, pairs).to(tl.int64)
    a, k, valid = pair_rows(p_anchor, p_positive, p_negative, n, positives, B)
    kept = n < positives
    p_w = p_weight + n * L * LP
    r0 = tl.arange(0, R0)
    r1 = R0 + tl.arange(0, R1 if R1 > 0 else R0)  # not used if R1 is 0
    m0 = tl.load(p_mask + a * L + r0, mask=r0 < L, other=0.0)
    square0 = tl.zeros((R0,), tl.float32)
    if R1 > 0:
        m1 = tl.load(p_mask + a * L + r1, mask=r1 < L, other=0.0)
        square1 = tl.zeros((R1,), tl.float32)
    if ALONE:
        p_s = p_similarity + n * L * LP
        p_m = p_mask + k * L
        weight00, weight01, share0, seen0 = _weights_of_rows(
            p_s, beta, p_w, p_share + n * L, p_m, m0, r0, r0, r1, L, LP, R1
        )
        low, high = _range(seen0, r0, L)
        if R1 > 0:
            weight10, weight11, share1, seen1 = _weights_of_rows(
                p_s, beta, p_w, p_share + n * L, p_m, m1, r1, r0, r1, L, LP, R1
            )
            low1, high1 = _range(seen1, r1, L)
            low = tl.minimum(low, low1)
            high = tl.maximum(high, high1)
            _store_comask(seen1, low, high, p_comask + n * L, r1, tl.where(kept, L, 0))
        _store_comask(seen0, low, high, p_comask + n * L, r0, tl.where(kept, L, 0))
    else:
        weight00 = load_tile(p_w, r0, r0, L, LP, LP)
        share0 = tl.load(p_share + n * L + r0, mask=r0 < L, other=0.0)
        if R1 > 0:
            weight01 = load_tile(p_w, r0, r1, L, LP, LP)
            weight10 = load_tile(p_w, r1, r0, L, LP, LP)
            weight11 = load_tile(p_w, r1, r1, L, LP, LP)
            share1 = tl.load(p_share + n * L + r1, mask=r1 < L, other=0.0)
    begin = tl.program_id(0) * PART
    for first in tl.range(begin, begin + PART, BLOCK_C, num_stages=STAGES):
        c = first + tl.arange(0, BLOCK_C)
        value0 = load_tile(p_f + k * L * C, r0, c, L, C, C)
        own0 = load_tile(p_f + a * L * C, r0, c, L, C, C)
        acc0 = tl.dot(weight00, value0)
        if R1 > 0:
            value1 = load_tile(p_f + k * L * C, r1, c, L, C, C)
            own1 = load_tile(p_f + a * L * C, r1, c, L, C, C)
            acc0 = tl.dot(weight01, value1, acc0)
            acc1 = tl.dot(weight10, value0)
            acc1 = tl.dot(weight11, value1, acc1)
            square1 += _blend_part(acc1, own1, m1, share1, p_out + n * L * C, r1, c, L, C, kept)
        square0 += _blend_part(acc0, own0, m0, share0, p_out + n * L * C, r0, c, L, C, kept)
    if ALONE:
        p_n = p_norm + a * L
        if R1 > 0:
            _store_distance(square1, m1, p_n, p_near, p_far, p_root, n, positives, r1, L)
        _store_distance(square0, m0, p_n, p_near, p_far, p_root, n, positives, r0, L)
    else:
        o_square = (n * tl.num_programs(0) + tl.program_id(0)) * L
        tl.store(p_square + o_square + r0, square0, mask=r0 < L)
        if R1 > 0:
            tl.store(p_square + o_square + r1, square1, mask=r1 < L)


@triton.jit
def finish_kernel(
    p_square, p_seen, p_norm, p_mask, p_anchor, p_positive, p_negative, p_near, p_far, p_comask, p_root,
    positives, B, L, tiles, BLOCK_T: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """For one pair, the distance from its shares; for a positive also the min-max of the co-mask."""
    n = tl.program_id(0).to(tl.int64)
    p = tl.arange(0, BLOCK_L)
    a, k, valid = pair_rows(p_anchor, p_positive, p_negative, n, positives, B)
    square = tl.sum(load_tile(p_square + n * tiles * L, tl.arange(0, BLOCK_T), p, tiles, L, L), axis=0)
    m = tl.load(p_mask + a * L + p, mask=p < L, other=0.0)
    _store_distance(square, m, p_norm + a * L, p_near, p_far, p_root, n, positives, p, L)
    seen = tl.load(p_seen + n * L + p, mask=p < L, other=0.0)
    low, high = _range(seen, p, L)
    _store_comask(seen, low, high, p_comask + n * L, p, tl.where(n < positives, L, 0))
