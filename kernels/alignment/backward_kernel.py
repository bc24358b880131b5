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

from kernels.alignment.score_gradient_kernel import products_kernel, quadratic_kernel, softmax_kernel
from kernels.alignment.tile_kernel import (
    Choice,
    load_tile,
    padded_length,
    precision,
    rows_of,
    store_tile,
)
from kernels.common.launch_kernel import Launches
from kernels.common.sizes import ceil_div, power_of_two


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

    The first program of every image sums what is subtracted along f. It mostly waits for its loads, so it shares
    this launch with the products.
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
