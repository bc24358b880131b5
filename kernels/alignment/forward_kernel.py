"""The forward of the alignment in Triton: the scores of whole pairs, and all launches of the pass.

Positives are rebuilt and measured, negatives only measured, in the same launches; nothing of size N x L x C is written
for a negative. Pairs are gathered by address. Derivation, bytes and FLOPs: README.md beside this file.
Legend: tile_kernel.py.
"""
# mypy: disable-error-code="no-untyped-def"

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.alignment.tile_kernel import (
    Choice,
    inverse,
    map_product,
    norms,
    padded_length,
    pair_number,
    pair_rows,
    precision,
    rows_of,
    store_tile,
)
from kernels.alignment.warp_kernel import finish_kernel, warp_kernel, warp_whole_kernel, weights_kernel
from kernels.common.launch_kernel import Launches
from kernels.common.sizes import ceil_div, power_of_two


class Aligned(NamedTuple):
    """What the forward returns: the results, and what the backward needs. Positive pairs come first."""

    reconstruction_NLC: torch.Tensor  # of the positives, in the features' dtype
    positive_distance_NL: torch.Tensor  # float32
    negative_distance_NL: torch.Tensor  # float32
    comask_NL: torch.Tensor  # of the positives, float32
    root_NL: torch.Tensor  # |f - w| of all pairs, float32
    similarity_NLP: torch.Tensor  # cosines of all pairs, N x L x LP, float32; columns from L on are 0
    weight_NLP: torch.Tensor  # exp(beta S - its row's maximum) of all pairs, in the features' dtype
    sums_RL: torch.Tensor  # the norms of the B images, then 1 / sum of the weights of all pairs, float32


@triton.jit
def _store_cosine(acc, p_norm_a, p_norm_k, p_out, p, s, L, LP, valid):
    """<f_a, f_k> / (|f_a| |f_k|), NaN for a pair outside the batch.

    In the columns of the padding it is 0 like the product, because f_k is loaded as 0 there (NaN in a row of NaN).
    """
    inverse_a = inverse(tl.load(p_norm_a + p, mask=p < L, other=0.0))
    inverse_k = inverse(tl.load(p_norm_k + s, mask=s < L, other=0.0))
    inverse_a = tl.where(valid, inverse_a, float("nan"))
    cosine = acc * inverse_a[:, None] * inverse_k[None, :]
    store_tile(p_out, p, s, L, LP, LP, cosine)


@triton.jit
def scores_kernel(
    p_f, p_norm, p_anchor, p_positive, p_negative, p_similarity, positives, pairs, B, L, LP, C,
    PRECISION: tl.constexpr, R0: tl.constexpr, R1: tl.constexpr, BLOCK_C: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Cosines of a pair, or of one tile of it."""
    n = pair_number(tl.program_id(1), positives, pairs).to(tl.int64)
    tiles = tl.cdiv(L, R0 + R1)
    first_p = tl.program_id(0) // tiles * (R0 + R1)
    first_s = tl.program_id(0) % tiles * (R0 + R1)
    a, k, valid = pair_rows(p_anchor, p_positive, p_negative, n, positives, B)
    p_k = p_f + k * L * C
    acc00, acc01, acc10, acc11 = map_product(
        p_f + a * L * C, p_k, p_k, first_p, first_s, L, C, C, False, PRECISION, R0, R1, BLOCK_C, STAGES
    )
    p_norm_a = p_norm + a * L
    p_norm_k = p_norm + k * L
    p_out = p_similarity + n * L * LP
    p0 = first_p + tl.arange(0, R0)
    s0 = first_s + tl.arange(0, R0)
    # The largest tile comes last: the registers of the others are free by then, so Triton 3.6 spills none.
    if R1 > 0:
        p1 = first_p + R0 + tl.arange(0, R1)
        s1 = first_s + R0 + tl.arange(0, R1)
        _store_cosine(acc11, p_norm_a, p_norm_k, p_out, p1, s1, L, LP, valid)
        _store_cosine(acc10, p_norm_a, p_norm_k, p_out, p1, s0, L, LP, valid)
        _store_cosine(acc01, p_norm_a, p_norm_k, p_out, p0, s1, L, LP, valid)
    _store_cosine(acc00, p_norm_a, p_norm_k, p_out, p0, s0, L, LP, valid)


_launches = Launches()


def forward(
    features_BLC: torch.Tensor, mask_BL: torch.Tensor, anchor_N: torch.Tensor, positive_N: torch.Tensor,
    negative_N: torch.Tensor, beta: float, choice: Choice,
) -> Aligned:  # fmt: skip
    """Align all pairs; positive_N and negative_N each have one target per anchor, or are empty."""
    features, mask = features_BLC.contiguous(), mask_BL.float().contiguous()
    positives, (images, length, channels) = len(positive_N), features.shape
    pairs, width = positives + len(negative_N), padded_length(length)
    reconstruction = features.new_empty(positives, length, channels)
    root = features.new_empty(pairs, length, dtype=torch.float32)
    near, comask = (root.new_empty(positives, length) for _ in range(2))
    far = root.new_empty(pairs - positives, length)
    targets = anchor_N.contiguous(), positive_N.contiguous(), negative_N.contiguous()
    kind = precision(features.dtype)
    launch = _launches.of((features.shape, positives, pairs, choice, kind), features, mask, *targets)
    similarity = features.new_empty(pairs, length, width, dtype=torch.float32)
    weight = torch.empty_like(similarity, dtype=features.dtype)
    sums = features.new_empty(images + pairs, length, dtype=torch.float32)
    norm, share = norms(launch, features, sums[:images]), sums[images:]
    if not pairs:
        return Aligned(reconstruction, near, far, comask, root, similarity, weight, sums)
    rows, tile = rows_of(length, choice.rows), choice.scores
    tiles = ceil_div(length, sum(rows))
    launch(
        scores_kernel, (tiles**2, pairs),
        features, norm, *targets, similarity, positives, pairs, images, length, width, channels,
        kind, *rows, tile.summed, tile.stages, num_warps=tile.warps, enable_fp_fusion=True,
    )  # fmt: skip
    tile = choice.warp
    whole = tile.parts and sum(rows) >= length and channels % (tile.parts * tile.columns) == 0
    parts = tile.parts if whole else ceil_div(channels, tile.columns)  # programs that measure the same rows
    alone = whole and parts == 1
    measured = (near, far, comask, root)
    block_l = max(power_of_two(length), 16)
    square = seen = None
    if not alone:
        square, seen = root.new_empty(pairs, parts, length), torch.empty_like(root)
        launch(
            weights_kernel, (ceil_div(length, 16), pairs),
            similarity, mask, *targets, weight, share, seen, positives, images, length, width, float(beta), 16, block_l,
            num_warps=4 if block_l <= 256 else 8, enable_fp_fusion=True,
        )  # fmt: skip
    given = (features, mask, *targets, weight, share, reconstruction, square)
    if whole:
        launch(
            warp_whole_kernel, (parts, pairs),
            *given, similarity, norm, *measured, positives, pairs, images, length, width, channels,
            channels // parts, float(beta), alone, *rows, tile.columns, tile.stages, num_warps=tile.warps,
            enable_fp_fusion=True,
        )  # fmt: skip
    else:
        launch(
            warp_kernel, (tiles * parts, pairs),
            *given, positives, pairs, images, length, width, channels, kind, *rows, tile.columns, tile.summed,
            tile.stages, num_warps=tile.warps, enable_fp_fusion=True,
        )  # fmt: skip
    if not alone:
        launch(
            finish_kernel, (pairs,),
            square, seen, norm, mask, *targets, *measured, positives, images, length, parts, power_of_two(parts),
            block_l, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return Aligned(reconstruction, near, far, comask, root, similarity, weight, sums)
