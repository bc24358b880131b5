"""What the two alignment ops share in Triton: norms, scores of pairs, softmax of a row, lists of pairs, the gradient.

Everything is a tiled matrix product over rows picked by pair; no program adds into another's output, so results are the
same every time. Pairs whose rows lie outside the batch read image 0 and give NaN.
Legend: B images, L positions (p of the anchor, s of the target), C channels, N pairs; a the anchor, k the target.
"""
# mypy: disable-error-code="no-untyped-def"

from typing import NamedTuple

import torch
import triton
import triton.language as tl


class Tile(NamedTuple):
    """A tuning choice of the matrix products: rows, columns and summed elements of a tile, warps, pipeline stages."""

    rows: int
    columns: int
    summed: int
    warps: int
    stages: int

    def fits(self, dtype: torch.dtype) -> "Tile":
        """float32 elements take twice the room; exact products, which no tensor core makes, more still."""
        if dtype != torch.float32:
            return self
        return Tile(32, 32, 16, 4, 3) if precision(dtype) == "ieee" else self._replace(summed=16, warps=8)


TILES = (Tile(64, 64, 64, 4, 3), Tile(64, 128, 64, 8, 3), Tile(128, 64, 32, 8, 3))


def precision(dtype: torch.dtype) -> str:
    """float32 products: exact or TF32 as torch.set_float32_matmul_precision says; half products are what they are."""
    return "ieee" if dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest" else "tf32"


@triton.jit
def pair_rows(p_anchor, p_target, n, B):
    """The two rows of pair n as int64, and whether they are in the batch."""
    a = tl.load(p_anchor + n)
    k = tl.load(p_target + n)
    valid = (a >= 0) & (a < B) & (k >= 0) & (k < B)
    return tl.where(valid, a, 0).to(tl.int64), tl.where(valid, k, 0).to(tl.int64), valid


@triton.jit
def load_tile(p_x, row, column, rows, columns, stride):
    """x[row, column], 0 outside of rows x columns."""
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    return tl.load(p_x + row[:, None] * stride + column[None, :], mask=inside, other=0.0)


@triton.jit
def inverse(norm):
    """1 / |f|; 0 for a vector without a direction."""
    return tl.where(norm > 1e-12, 1.0 / tl.where(norm > 1e-12, norm, 1.0), 0.0)


@triton.jit
def softmax_rows(p_similarity, p, L, beta, BLOCK_P: tl.constexpr, BLOCK_L: tl.constexpr):
    """Whole rows p of one pair: similarity, probabilities (0 beyond L), and the row's log of the sum."""
    s = tl.arange(0, BLOCK_L)
    similarity = load_tile(p_similarity, p, s, L, L, L)
    score = tl.where(s[None, :] < L, similarity * beta, float("-inf"))
    top = tl.max(score, axis=1)
    weight = tl.exp(score - top[:, None])
    total = tl.sum(weight, axis=1)
    return similarity, weight / total[:, None], top + tl.log(total)


@triton.jit
def norms_kernel(p_f, p_norm, rows, C, BLOCK_ROW: tl.constexpr, BLOCK_C: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROW + tl.arange(0, BLOCK_ROW)
    total = tl.zeros((BLOCK_ROW,), tl.float32)
    for first in range(0, C, BLOCK_C):
        x = load_tile(p_f, row, first + tl.arange(0, BLOCK_C), rows, C, C).to(tl.float32)
        total += tl.sum(x * x, axis=1)
    tl.store(p_norm + row, tl.sqrt(total), mask=row < rows)


@triton.jit
def scores_kernel(
    p_f, p_norm, p_anchor, p_target, p_out, B, L, C, COSINE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out[n] = f_a f_k^T, divided by both norms if COSINE; else n is an image, both its rows: a Gram matrix."""
    n = tl.program_id(1)
    tiles = tl.cdiv(L, BLOCK_S)
    p = tl.program_id(0) // tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    s = tl.program_id(0) % tiles * BLOCK_S + tl.arange(0, BLOCK_S)
    a = n.to(tl.int64)
    k = a
    valid = n >= 0
    if COSINE:
        a, k, valid = pair_rows(p_anchor, p_target, n, B)
    acc = tl.zeros((BLOCK_P, BLOCK_S), tl.float32)
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        x = load_tile(p_f + a * L * C, p, c, L, C, C)
        y = load_tile(p_f + k * L * C, s, c, L, C, C)
        acc = tl.dot(x, tl.trans(y), acc, input_precision=PRECISION)
    if COSINE:
        acc *= inverse(tl.load(p_norm + a * L + p, mask=p < L, other=0.0))[:, None]
        acc *= inverse(tl.load(p_norm + k * L + s, mask=s < L, other=0.0))[None, :]
    acc = tl.where(valid, acc, float("nan"))
    o_out = n.to(tl.int64) * L * L + p[:, None] * L + s[None, :]
    tl.store(p_out + o_out, acc, mask=(p[:, None] < L) & (s[None, :] < L))


@triton.jit
def lists_kernel(p_rows, p_list, p_count, N, BLOCK_N: tl.constexpr):
    """list[i] = the pairs whose row is i, ascending, so that sums over them have one order."""
    i_image = tl.program_id(0)
    count = 0
    for first in range(0, N, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        match = (tl.load(p_rows + n, mask=n < N, other=-1) == i_image).to(tl.int32)
        place = count + tl.cumsum(match, axis=0) - match
        tl.store(p_list + i_image * N + place, n, mask=match == 1)
        count += tl.sum(match, axis=0)
    tl.store(p_count + i_image, count)


@triton.jit
def gradient_kernel(
    p_f, p_anchor, p_target, p_anchor_list, p_anchor_count, p_target_list, p_target_count, p_e, p_along_a, p_along_k,
    p_probability, p_grad, p_dw, p_gram, p_out, N, L, C, tiles_along, BLEND: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """The features' gradient, a tile of one image, summed over its pairs in ascending order.

    As anchor: E f_k (+ grad - dw if BLEND). As target: E^T f_a (+ P^T dw if BLEND, else once gram f). Minus along * f.
    """
    i_image = tl.program_id(1).to(tl.int64)
    tiles = tl.cdiv(C, BLOCK_C)
    p = tl.program_id(0) // tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(0) % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    along = tl.zeros((BLOCK_P,), tl.float32)
    for j in range(tl.load(p_anchor_count + i_image)):
        n = tl.load(p_anchor_list + i_image * N + j).to(tl.int64)
        k = tl.load(p_target + n)
        for first in range(0, L, BLOCK_S):
            s = first + tl.arange(0, BLOCK_S)
            e = load_tile(p_e + n * L * L, p, s, L, L, L)
            acc = tl.dot(e, load_tile(p_f + k * L * C, s, c, L, C, C), acc, input_precision=PRECISION)
        along += tl.load(p_along_a + n * L + p, mask=p < L, other=0.0)
        if BLEND:
            acc += load_tile(p_grad + n * L * C, p, c, L, C, C).to(tl.float32)
            acc -= load_tile(p_dw + n * L * C, p, c, L, C, C).to(tl.float32)
    for j in range(tl.load(p_target_count + i_image)):
        n = tl.load(p_target_list + i_image * N + j).to(tl.int64)
        a = tl.load(p_anchor + n)
        for first in range(0, L, BLOCK_S):
            q = first + tl.arange(0, BLOCK_S)
            e = load_tile(p_e + n * L * L, q, p, L, L, L)
            acc = tl.dot(tl.trans(e), load_tile(p_f + a * L * C, q, c, L, C, C), acc, input_precision=PRECISION)
        if BLEND:
            for first in range(0, L, BLOCK_S):
                q = first + tl.arange(0, BLOCK_S)
                probability = load_tile(p_probability + n * L * L, q, p, L, L, L)
                dw = load_tile(p_dw + n * L * C, q, c, L, C, C)
                acc = tl.dot(tl.trans(probability), dw, acc, input_precision=PRECISION)
        for tile in range(tiles_along):
            along += tl.load(p_along_k + (n * tiles_along + tile) * L + p, mask=p < L, other=0.0)
    if not BLEND:
        for first in range(0, L, BLOCK_S):
            s = first + tl.arange(0, BLOCK_S)
            gram = load_tile(p_gram + i_image * L * L, p, s, L, L, L)
            acc = tl.dot(gram, load_tile(p_f + i_image * L * C, s, c, L, C, C), acc, input_precision=PRECISION)
    acc -= along[:, None] * load_tile(p_f + i_image * L * C, p, c, L, C, C).to(tl.float32)
    o_out = i_image * L * C + p[:, None] * C + c[None, :]
    tl.store(p_out + o_out, acc.to(p_out.dtype.element_ty), mask=(p[:, None] < L) & (c[None, :] < C))


def norms(features_BLC: torch.Tensor) -> torch.Tensor:
    """B x L float32."""
    images, length, channels = features_BLC.shape
    out = features_BLC.new_empty(images, length, dtype=torch.float32)
    norms_kernel[(triton.cdiv(images * length, 4),)](
        features_BLC, out, images * length, channels, 4, 256, num_warps=4, enable_fp_fusion=True
    )
    return out


def scores(
    features_BLC: torch.Tensor, norm_BL: torch.Tensor, anchor_N: torch.Tensor, target_N: torch.Tensor, tile: Tile,
    cosine: bool = True,
) -> torch.Tensor:  # fmt: skip
    """Cosine similarities of the pairs, N x L x L float32; or with cosine=False the Gram matrices of all images."""
    images, length, channels = features_BLC.shape
    count, tile = len(anchor_N) if cosine else images, tile.fits(features_BLC.dtype)
    out = features_BLC.new_empty(count, length, length, dtype=torch.float32)
    scores_kernel[(triton.cdiv(length, tile.rows) * triton.cdiv(length, tile.columns), count)](
        features_BLC, norm_BL, anchor_N, target_N, out, images, length, channels, cosine,
        precision(features_BLC.dtype), tile.rows, tile.columns, tile.summed,
        num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
    )  # fmt: skip
    return out


def lists(rows_N: torch.Tensor, images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For every image the pairs it belongs to, ascending, B x N int32, and how many, B int32."""
    pairs = len(rows_N)
    listed, count = (rows_N.new_empty(size, dtype=torch.int32) for size in ((images, pairs), (images,)))
    lists_kernel[(images,)](rows_N, listed, count, pairs, 128, num_warps=4, enable_fp_fusion=True)
    return listed, count


def row_block(length: int) -> tuple[int, int, int]:
    """(rows at once, padded row length, warps) of the kernels that hold whole rows of scores in registers."""
    padded = max(triton.next_power_of_2(length), 16)
    return 16, padded, 8 if padded <= 512 else 16


def _gradient_stages(dtype: torch.dtype, blends: bool) -> int:
    """Pipeline stages at which nothing spills on sm_80, sm_90 or sm_100 (perf/compile_report.py)."""
    if dtype != torch.float32:
        return 2 if blends else 3
    return 3 if blends and precision(dtype) == "ieee" else 1


def gradient(
    features_BLC: torch.Tensor, anchor_N: torch.Tensor, target_N: torch.Tensor, e_NLL: torch.Tensor,
    along_a_NL: torch.Tensor, along_k_NTL: torch.Tensor, blend: tuple[torch.Tensor, ...] | None,
    gram_BLL: torch.Tensor | None, lists_of_target: tuple[torch.Tensor, torch.Tensor], tile: Tile,
) -> torch.Tensor:  # fmt: skip
    """B x L x C in the features' dtype. blend: probability, grad and dw of `soft_align`."""
    images, length, channels = features_BLC.shape
    tile, out = tile.fits(features_BLC.dtype), torch.empty_like(features_BLC)
    stages = _gradient_stages(features_BLC.dtype, blend is not None)
    gradient_kernel[(triton.cdiv(length, tile.rows) * triton.cdiv(channels, tile.columns), images)](
        features_BLC, anchor_N, target_N, *lists(anchor_N, images), *lists_of_target, e_NLL, along_a_NL, along_k_NTL,
        *(blend or (e_NLL, features_BLC, features_BLC)),
        e_NLL if gram_BLL is None else gram_BLL, out, len(anchor_N), length, channels, along_k_NTL.shape[1],
        blend is not None, precision(features_BLC.dtype), tile.rows, tile.columns, tile.summed,
        num_warps=tile.warps, num_stages=stages, enable_fp_fusion=True,
    )  # fmt: skip
    return out
