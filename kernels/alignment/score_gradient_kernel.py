"""The first half of the alignment's backward in Triton: from the gradients of the results to those of the scores.

Derivation, bytes and FLOPs: README.md beside this file. Legend: tile_kernel.py; g is the gradient of the
reconstruction, h that of the distance.
"""
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from kernels.alignment.tile_kernel import inverse, load_tile, map_product, pair_number, pair_rows, store_map, store_tile


@triton.jit
def _largest_square(p_norm, L, BLOCK_L: tl.constexpr):
    """The largest |f|^2 of an image, by which its Gram matrix is divided so that it fits any half type."""
    s = tl.arange(0, BLOCK_L)
    norm = tl.max(tl.load(p_norm + s, mask=s < L, other=0.0), axis=0)
    return norm * norm


@triton.jit
def _store_gram(p_high, p_low, p, s, L, LP, value, SPLIT: tl.constexpr):
    """Store a tile of a Gram matrix as two half numbers (16 bits in bfloat16, 22 in float16) or as one float32."""
    high = value.to(p_high.dtype.element_ty)
    store_tile(p_high, p, s, L, LP, LP, high)
    if SPLIT:
        store_tile(p_low, p, s, L, LP, LP, value - high.to(tl.float32))


@triton.jit
def products_kernel(
    p_f, p_g, p_norm, p_positive, p_through, p_high, p_low, positives, B, L, LP, C,
    SPLIT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_L: tl.constexpr,
    R0: tl.constexpr, R1: tl.constexpr, BLOCK_C: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """through[n] = g f_k^T of the positives, then the scaled Gram matrices of all images, in one launch."""
    i = tl.program_id(1).to(tl.int64)
    tiles = tl.cdiv(L, R0 + R1)
    first_p = tl.program_id(0) // tiles * (R0 + R1)
    first_s = tl.program_id(0) % tiles * (R0 + R1)
    k = i - positives
    p_x = p_f + k * L * C
    if i < positives:
        k = tl.load(p_positive + i).to(tl.int64)
        k = tl.where((k >= 0) & (k < B), k, 0)
        p_x = p_g + i * L * C
    acc00, acc01, acc10, acc11 = map_product(
        p_x, p_f + k * L * C, p_f, first_p, first_s, L, C, C, False, PRECISION, R0, R1, BLOCK_C, STAGES
    )
    if i < positives:
        store_map(p_through + i * L * LP, first_p, first_s, L, LP, acc00, acc01, acc10, acc11, R0, R1)
    else:
        p_h = p_high + k * L * LP
        p_l = p_low + k * L * LP
        largest = _largest_square(p_norm + k * L, L, BLOCK_L)
        scale = tl.where(largest > 0, 1.0 / tl.where(largest > 0, largest, 1.0), 0.0)
        p0 = first_p + tl.arange(0, R0)
        s0 = first_s + tl.arange(0, R0)
        _store_gram(p_h, p_l, p0, s0, L, LP, acc00 * scale, SPLIT)
        if R1 > 0:
            p1 = first_p + R0 + tl.arange(0, R1)
            s1 = first_s + R0 + tl.arange(0, R1)
            _store_gram(p_h, p_l, p0, s1, L, LP, acc01 * scale, SPLIT)
            _store_gram(p_h, p_l, p1, s0, L, LP, acc10 * scale, SPLIT)
            _store_gram(p_h, p_l, p1, s1, L, LP, acc11 * scale, SPLIT)


@triton.jit
def _list_products(
    i_image, p_anchor, p_positive, p_negative, p_matrix, p_source, p_counts, positives, pairs, B, capacity,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """List the L x L matrices and the maps whose products add up to an image's gradient, pairs ascending.

    First come those of pairs whose anchor it is (matrix n, map k), then of pairs whose target it is (pairs + n, map a),
    then its own (2 pairs + image, map image). counts: all, as anchor, as anchor of positives, as target of positives.
    """
    p_m = p_matrix + i_image.to(tl.int64) * capacity
    p_s = p_source + i_image.to(tl.int64) * capacity
    count = 0
    anchors_of_positives = 0
    for side in tl.static_range(2):
        for first in range(0, pairs, BLOCK_N):
            n = first + tl.arange(0, BLOCK_N)
            i = tl.where(n < positives, n, n - positives)
            a = tl.load(p_anchor + i, mask=n < pairs, other=-1)
            k = tl.load(p_positive + i, mask=n < positives, other=0)
            k += tl.load(p_negative + i, mask=(n >= positives) & (n < pairs), other=0)
            valid = (n < pairs) & (a >= 0) & (a < B) & (k >= 0) & (k < B)
            if side == 0:
                match = ((a == i_image) & valid).to(tl.int32)
                other = k
            else:
                match = ((k == i_image) & valid).to(tl.int32)
                other = a
            place = count + tl.cumsum(match, axis=0) - match
            tl.store(p_m + place, n + side * pairs, mask=match == 1)
            tl.store(p_s + place, other.to(tl.int32), mask=match == 1)
            count += tl.sum(match, axis=0)
            anchors_of_positives += tl.sum(tl.where(n < positives, match, 0), axis=0)
        if side == 0:
            tl.store(p_counts + i_image * 4 + 1, count)
            tl.store(p_counts + i_image * 4 + 2, anchors_of_positives)
            anchors_of_positives = 0
        else:
            tl.store(p_counts + i_image * 4 + 3, anchors_of_positives)
    tl.store(p_m + count, 2 * pairs + i_image)
    tl.store(p_s + count, i_image)
    tl.store(p_counts + i_image * 4, count + 1)


@triton.jit
def quadratic_kernel(
    p_weight, p_high, p_low, p_anchor, p_positive, p_negative, p_quadratic, p_matrix, p_source, p_counts,
    positives, pairs, B, L, LP, capacity, SPLIT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr,
    R: tl.constexpr, BLOCK_C: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """W G of the pairs in tiles of R x R, with the weights that the forward used.

    The same terms then cancel in P G - A as in w - f. The first B programs list each image's products for later
    launches.
    """
    i = tl.program_id(0)
    if i < B:
        _list_products(
            i, p_anchor, p_positive, p_negative, p_matrix, p_source, p_counts, positives, pairs, B, capacity, BLOCK_N
        )
    else:
        i -= B
        tiles = tl.cdiv(LP, R)
        n = pair_number(i // (tiles * tiles), positives, pairs).to(tl.int64)
        i_tile = i % (tiles * tiles)
        first_p = i_tile // tiles * R
        first_s = i_tile % tiles * R
        a, k, valid = pair_rows(p_anchor, p_positive, p_negative, n, positives, B)
        acc, _, _, _ = map_product(
            p_weight + n * L * LP, p_high + k * L * LP, p_low + k * L * LP, first_p, first_s, L, LP, LP,
            SPLIT, PRECISION, R, 0, BLOCK_C, STAGES,
        )  # fmt: skip
        store_map(p_quadratic + n * L * LP, first_p, first_s, L, LP, acc, acc, acc, acc, R, 0)


@triton.jit
def softmax_kernel(
    p_norm, p_mask, p_anchor, p_positive, p_negative, p_similarity, p_weight, p_share, p_root, p_h_near, p_h_far,
    p_through, p_quadratic, p_matrices, p_rebuilt, p_sloped, p_along_a, p_along_k,
    positives, pairs, B, L, LP, beta, BLOCK_P: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """Backward through distance and softmax for BLOCK_P rows of a pair: writes the L x L matrices of later products."""
    n = tl.program_id(1).to(tl.int64)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    s = tl.arange(0, BLOCK_L)
    a, k, valid = pair_rows(p_anchor, p_positive, p_negative, n, positives, B)
    kept = n < positives
    m = tl.load(p_mask + a * L + p, mask=p < L, other=0.0)
    norm_a = tl.load(p_norm + a * L + p, mask=p < L, other=0.0)
    norm_k = tl.load(p_norm + k * L + s, mask=s < L, other=0.0)
    share = tl.load(p_share + n * L + p, mask=p < L, other=0.0)
    root = tl.load(p_root + n * L + p, mask=p < L, other=1.0)
    h = tl.load(p_h_near + n * L + p, mask=p < tl.where(kept, L, 0), other=0.0)
    h += tl.load(p_h_far + (n - positives) * L + p, mask=p < tl.where(kept, 0, L), other=0.0)
    counts = root > 1e-6 * tl.maximum(norm_a, 1e-12)  # no gradient flows where the floor applies
    slope = tl.where(counts, h * m / tl.where(counts, root, 1.0), 0.0)

    similarity = load_tile(p_similarity + n * L * LP, p, s, L, LP, LP)
    probability = load_tile(p_weight + n * L * LP, p, s, L, LP, LP).to(tl.float32) * share[:, None]
    largest = tl.max(norm_k, axis=0)
    quadratic = load_tile(p_quadratic + n * L * LP, p, s, L, LP, LP) * (share * largest * largest)[:, None]
    grad = slope[:, None] * (quadratic - similarity * norm_a[:, None] * norm_k[None, :])
    grad += m[:, None] * load_tile(p_through + n * L * LP, p, s, tl.where(kept, L, 0), LP, LP)
    grad = beta * probability * (grad - tl.sum(probability * grad, axis=1)[:, None])

    inverse_a = inverse(norm_a)
    inverse_k = inverse(norm_k)
    along = grad * similarity
    tl.store(p_along_a + n * L + p, tl.sum(along, axis=1) * inverse_a * inverse_a - slope, mask=p < L)
    o_along = (n * tl.num_programs(0) + tl.program_id(0)) * L
    tl.store(p_along_k + o_along + s, tl.sum(along, axis=0) * inverse_k * inverse_k, mask=s < L)
    e = (grad * inverse_a[:, None] * inverse_k[None, :] - slope[:, None] * probability).to(p_matrices.dtype.element_ty)
    store_tile(p_matrices + n * L * LP, p, s, L, LP, LP, e)
    store_tile(p_matrices + (pairs + n) * L * LP, s, p, L, LP, LP, tl.trans(e))
    rebuilt = (m[:, None] * probability).to(p_rebuilt.dtype.element_ty)
    store_tile(p_rebuilt + n * L * LP, s, p, tl.where(kept, L, 0), LP, LP, tl.trans(rebuilt))
    store_tile(p_sloped + n * L * LP, p, s, L, LP, LP, (slope * share)[:, None] * probability)
