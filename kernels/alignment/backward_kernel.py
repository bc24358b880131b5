"""The backward of the alignment in Triton: one gradient of the features for all pairs of a layer.

The gradient of the warp (N x L x C) is never written: with the Gram matrix of the target, every term of that size is a
product of one L x L matrix with a map already in memory. Derivation, bytes and FLOPs: README.md beside this file.
Legend: tile_kernel.py; g is the gradient of the reconstruction, h that of the distance.
"""
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.alignment.tile_kernel import (
    Choice,
    inverse,
    load_tile,
    map_product,
    padded_length,
    pair_number,
    pair_rows,
    precision,
    rows_of,
    store_map,
    store_tile,
)
from kernels.common.launch_kernel import Launches
from kernels.common.sizes import ceil_div, power_of_two


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


@triton.jit
def _sum_along(
    i_image, p_matrix, p_counts, p_along_a, p_along_k, p_out, pairs, capacity, tiles, L,
    BLOCK_T: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """Sum what is subtracted along f at every position of an image over its pairs, as anchor and then as target."""
    p = tl.arange(0, BLOCK_L)
    p_m = p_matrix + i_image * capacity
    anchors = tl.load(p_counts + i_image * 4 + 1)
    total = tl.zeros((BLOCK_L,), tl.float32)
    for j in range(anchors):
        n = tl.load(p_m + j).to(tl.int64)
        total += tl.load(p_along_a + n * L + p, mask=p < L, other=0.0)
    for j in range(anchors, tl.load(p_counts + i_image * 4) - 1):
        n = (tl.load(p_m + j) - pairs).to(tl.int64)
        for first in range(0, tiles, BLOCK_T):
            tile = first + tl.arange(0, BLOCK_T)
            total += tl.sum(load_tile(p_along_k + n * tiles * L, tile, p, tiles, L, L), axis=0)
    tl.store(p_out + i_image * L + p, total, mask=p < L)


@triton.jit
def gram_gradient_kernel(
    p_weight, p_sloped, p_matrix, p_counts, p_along_a, p_along_k, p_along, p_out, pairs, capacity, shares, L, LP,
    PRECISION: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_Q: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The sum of P^T slope P = (slope share P)^T W over the pairs of one target image, pairs ascending.

    The first program of every image sums what is subtracted along f. It waits long and computes little, so it has no
    launch of its own.
    """
    i_image = tl.program_id(1).to(tl.int64)
    if tl.program_id(0) == 0:
        _sum_along(
            i_image, p_matrix, p_counts, p_along_a, p_along_k, p_along, pairs, capacity, shares, L, BLOCK_T, BLOCK_L
        )
    else:
        i_tile = tl.program_id(0) - 1
        tiles = tl.cdiv(LP, BLOCK_P)
        p = i_tile // tiles * BLOCK_P + tl.arange(0, BLOCK_P)
        s = i_tile % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
        begin = tl.load(p_counts + i_image * 4 + 1)
        end = tl.load(p_counts + i_image * 4) - 1
        acc = tl.zeros((BLOCK_P, BLOCK_P), tl.float32)
        for j in range(begin, end):
            n = (tl.load(p_matrix + i_image * capacity + j) - pairs).to(tl.int64)
            for first in tl.range(0, L, BLOCK_Q, num_stages=STAGES):
                q = first + tl.arange(0, BLOCK_Q)
                x = load_tile(p_sloped + n * L * LP, q, p, L, LP, LP)
                y = load_tile(p_weight + n * L * LP, q, s, L, LP, LP)
                acc = tl.dot(tl.trans(x), y, acc, input_precision=PRECISION)
        store_tile(p_out + i_image * L * LP, p, s, L, LP, LP, acc)


@triton.jit
def gradient_kernel(
    d_matrix0, d_matrix1, d_rebuilt0, d_rebuilt1, d_f, d_g, p_f, p_g, p_mask, p_matrix, p_source, p_counts,
    p_along, p_out, pairs, capacity, L, C, PRECISION: tl.constexpr,
    R0: tl.constexpr, R1: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The features' gradient: R0 + R1 rows and BLOCK_C channels of one image, summed over its list.

    The terms are E f_k as anchor, E^T f_a as target, (sum of P^T slope P) f once, (m P)^T g as target of positives,
    (1 - m) g as anchor of positives, minus along f. The descriptors d_ load whole tiles, with zeros outside.
    """
    i_image = tl.program_id(2).to(tl.int64)
    first_p = tl.program_id(1) * (R0 + R1)
    first_c = tl.program_id(0) * BLOCK_C
    acc0 = tl.zeros((R0, BLOCK_C), tl.float32)
    if R1 > 0:
        acc1 = tl.zeros((R1, BLOCK_C), tl.float32)
    count = tl.load(p_counts + i_image * 4)
    anchors = tl.load(p_counts + i_image * 4 + 1)
    blended = tl.load(p_counts + i_image * 4 + 2)
    rebuilt = tl.load(p_counts + i_image * 4 + 3)
    p_m = p_matrix + i_image * capacity
    p_s = p_source + i_image * capacity
    # The loops are flattened into one, so that the loads of a product begin while the previous one is still computed.
    for j in tl.range(0, count, flatten=True):
        i_matrix = tl.load(p_m + j)
        i_map = tl.load(p_s + j)
        for s in tl.range(0, L, BLOCK_S, num_stages=STAGES):
            value = d_f.load([i_map, s, first_c]).reshape(BLOCK_S, BLOCK_C)
            matrix0 = d_matrix0.load([i_matrix, first_p, s]).reshape(R0, BLOCK_S)
            acc0 = tl.dot(matrix0, value, acc0, input_precision=PRECISION)
            if R1 > 0:
                matrix1 = d_matrix1.load([i_matrix, first_p + R0, s]).reshape(R1, BLOCK_S)
                acc1 = tl.dot(matrix1, value, acc1, input_precision=PRECISION)
    for j in tl.range(anchors, anchors + rebuilt, flatten=True):
        n = tl.load(p_m + j) - pairs
        for s in tl.range(0, L, BLOCK_S, num_stages=STAGES):
            value = d_g.load([n, s, first_c]).reshape(BLOCK_S, BLOCK_C)
            matrix0 = d_rebuilt0.load([n, first_p, s]).reshape(R0, BLOCK_S)
            acc0 = tl.dot(matrix0, value, acc0, input_precision=PRECISION)
            if R1 > 0:
                matrix1 = d_rebuilt1.load([n, first_p + R0, s]).reshape(R1, BLOCK_S)
                acc1 = tl.dot(matrix1, value, acc1, input_precision=PRECISION)
    # The terms that are no matrix product. The loads of all rows are issued together, so that they wait together.
    c = first_c + tl.arange(0, BLOCK_C)
    p_images_mask = p_mask + i_image * L
    p_images_along = p_along + i_image * L
    p0 = first_p + tl.arange(0, R0)
    m0 = tl.load(p_images_mask + p0, mask=p0 < L, other=0.0)
    along0 = tl.load(p_images_along + p0, mask=p0 < L, other=0.0)
    if R1 > 0:
        p1 = first_p + R0 + tl.arange(0, R1)
        m1 = tl.load(p_images_mask + p1, mask=p1 < L, other=0.0)
        along1 = tl.load(p_images_along + p1, mask=p1 < L, other=0.0)
    for j in range(blended):
        p_sent = p_g + tl.load(p_m + j).to(tl.int64) * L * C
        g0 = load_tile(p_sent, p0, c, L, C, C)
        if R1 > 0:
            g1 = load_tile(p_sent, p1, c, L, C, C)
            acc1 += (1.0 - m1)[:, None] * g1.to(tl.float32)
        acc0 += (1.0 - m0)[:, None] * g0.to(tl.float32)
    p_own = p_f + i_image * L * C
    own0 = load_tile(p_own, p0, c, L, C, C)
    if R1 > 0:
        own1 = load_tile(p_own, p1, c, L, C, C)
        acc1 -= along1[:, None] * own1.to(tl.float32)
        store_tile(p_out + i_image * L * C, p1, c, L, C, C, acc1)
    acc0 -= along0[:, None] * own0.to(tl.float32)
    store_tile(p_out + i_image * L * C, p0, c, L, C, C, acc0)


_launches = Launches()


def backward(
    grad_reconstruction_NLC: torch.Tensor, grad_positive_NL: torch.Tensor, grad_negative_NL: torch.Tensor,
    features_BLC: torch.Tensor, mask_BL: torch.Tensor, anchor_N: torch.Tensor, positive_N: torch.Tensor,
    negative_N: torch.Tensor, beta: float, root_NL: torch.Tensor, similarity_NLP: torch.Tensor,
    weight_NLP: torch.Tensor, sums_RL: torch.Tensor, choice: Choice,
) -> torch.Tensor:  # fmt: skip
    """The gradient of the features, B x L x C in their dtype."""
    features, mask = _at_multiple_of_16(features_BLC), mask_BL.float().contiguous()
    positives, (images, length, channels) = len(positive_N), features.shape
    pairs, width, dtype = positives + len(negative_N), padded_length(length), features.dtype
    if not pairs:
        return torch.zeros_like(features)
    g = _at_multiple_of_16(grad_reconstruction_NLC.to(dtype))
    h = grad_positive_NL.float().contiguous(), grad_negative_NL.float().contiguous()
    norm, share = sums_RL[:images], sums_RL[images:]
    targets = anchor_N.contiguous(), positive_N.contiguous(), negative_N.contiguous()
    kind, split = precision(dtype), dtype != torch.float32
    given = (g, *h, features, mask, *targets, root_NL, similarity_NLP, weight_NLP, sums_RL)
    launch = _launches.of((features.shape, positives, pairs, choice, kind), *given)
    rows, tile = rows_of(length, choice.rows), choice.scores
    block_l = max(power_of_two(length), 16)
    tiles = ceil_div(length, sum(rows))
    through = torch.empty_like(similarity_NLP[:positives])
    high = features.new_empty(images, length, width)
    low = torch.empty_like(high) if split else high
    launch(
        products_kernel, (tiles**2, positives + images),
        features, g, norm, targets[1], through, high, low, positives, images, length, width, channels,
        split, kind, block_l, *rows, tile.summed, tile.stages, num_warps=tile.warps, enable_fp_fusion=True,
    )  # fmt: skip
    capacity = 2 * pairs + 1
    matrix, source = (anchor_N.new_empty(images, capacity, dtype=torch.int32) for _ in range(2))
    counts = matrix.new_empty(images, 4)
    quadratic, tile = torch.empty_like(similarity_NLP), choice.quadratic
    launch(
        quadratic_kernel, (images + ceil_div(width, tile.columns) ** 2 * pairs,),
        weight_NLP, high, low, *targets, quadratic, matrix, source, counts, positives, pairs, images, length, width,
        capacity, split, "tf32x3" if kind == "tf32" and not split else kind, 128, tile.columns, tile.summed,
        tile.stages, num_warps=tile.warps, enable_fp_fusion=True,
    )  # fmt: skip
    matrices = features.new_empty(2 * pairs + images, length, width)
    rebuilt, sloped = features.new_empty(positives, length, width), torch.empty_like(weight_NLP)
    tile = choice.softmax
    block_p = max(min(tile.columns, 8192 // block_l), 1)
    blocks = ceil_div(width, block_p)
    along_a, along_k = torch.empty_like(root_NL), root_NL.new_empty(pairs, blocks, length)
    launch(
        softmax_kernel, (blocks, pairs),
        norm, mask, *targets, similarity_NLP, weight_NLP, share, root_NL, *h, through, quadratic, matrices,
        rebuilt, sloped, along_a, along_k, positives, pairs, images, length, width, float(beta), block_p, block_l,
        num_warps=tile.warps, enable_fp_fusion=True,
    )  # fmt: skip
    along, tile = torch.empty_like(norm), choice.gram
    launch(
        gram_gradient_kernel, (1 + ceil_div(width, tile.columns) ** 2, images),
        weight_NLP, sloped, matrix, counts, along_a, along_k, along, matrices[2 * pairs :], pairs, capacity, blocks,
        length, width, kind, max(4096 // block_l, 1), block_l, tile.columns, tile.summed, tile.stages,
        num_warps=tile.warps, enable_fp_fusion=True,
    )  # fmt: skip
    out, tile = torch.empty_like(features), choice.gradient
    if not positives:
        rebuilt, g = matrices, features  # not read, but a descriptor needs a tensor that is not empty
    launch(
        gradient_kernel, (ceil_div(channels, tile.columns), tiles, images),
        *_described(matrices, rows, tile.summed), *_described(rebuilt, rows, tile.summed),
        *_described(features, (tile.summed,), tile.columns), *_described(g, (tile.summed,), tile.columns),
        features, g, mask, matrix, source, counts, along, out,
        pairs, capacity, length, channels, kind, *rows, tile.columns, tile.summed, tile.stages,
        num_warps=tile.warps, enable_fp_fusion=True,
    )  # fmt: skip
    return out


def _at_multiple_of_16(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, contiguous and at an address that is a multiple of 16 bytes, as a descriptor needs it."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def _described(tensor: torch.Tensor, rows: tuple[int, ...], columns: int) -> list[TensorDescriptor]:
    """Descriptors of tiles of one matrix of the tensor, one for each number of rows; 0 repeats the first."""
    blocks = [[1, count or rows[0], columns] for count in rows]
    return [TensorDescriptor(tensor, tensor.shape, tensor.stride(), block) for block in blocks]
