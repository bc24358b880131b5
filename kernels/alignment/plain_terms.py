"""What both halves of the plain path need: maps, blocks of pairs, the distance's floor, the gradient of the softmax.

Legend: B images, L positions, C channels, N pairs, G pairs of a block.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from kernels.alignment.reference import DISTANCE_FLOOR, NORM_FLOOR
from kernels.common.dtypes import compute_dtype

# Where |f - w| < 0.1 |f|, the square of the distance in the CPU's Gram form has lost two of float32's seven digits.
CANCELS = 0.01
# The most numbers that the maps of a block have, or its L x L matrices, unless it is one pair. A batched product of
# several pairs keeps two threads busier than one product divided between them, and a call costs some microseconds
# whatever its size. Larger blocks were no faster on two cores of an EPYC with 32 MiB of shared cache.
BLOCK_NUMBERS = 2**21
Rows = slice | torch.Tensor  # row numbers of a block; a slice where they are consecutive


class Maps(NamedTuple):
    """The maps of a batch, B x L x C, with their masks, norms and inverse norms, B x L; all in the computing dtype.

    The inverse norm of a vector too short to have a direction is 0.
    """

    features: torch.Tensor
    mask: torch.Tensor
    norm: torch.Tensor
    inverse: torch.Tensor


class Gradient(NamedTuple):
    """Sums over the pairs: the gradient of the features, B x L x C, and the multiple of them to subtract, B x L."""

    features: torch.Tensor
    along: torch.Tensor


def maps_of(features_BLC: torch.Tensor, mask_BL: torch.Tensor) -> Maps:
    features = features_BLC.to(compute_dtype(features_BLC))
    norm = torch.linalg.vector_norm(features, dim=-1)
    inverse = torch.where(norm > NORM_FLOOR, norm.reciprocal(), 0.0)
    return Maps(features, mask_BL.to(features.dtype), norm, inverse)


def pairs_at_once(features_BLC: torch.Tensor) -> int:
    """A power of two, because with an odd number of pairs one of two threads would wait for the other."""
    _, length, channels = features_BLC.shape
    pairs: int = BLOCK_NUMBERS // (length * max(length, channels))
    return 1 << max(0, pairs.bit_length() - 1)


def blocks(features_BLC: torch.Tensor, *rows: torch.Tensor) -> Iterator[tuple[slice, list[Rows]]]:
    """Yield slices of the pairs, each with the given row numbers of its pairs."""
    at_once = pairs_at_once(features_BLC)
    for first in range(0, len(rows[0]), at_once):
        block = slice(first, first + at_once)
        yield block, [_as_slice(each[block]) for each in rows]


def _as_slice(rows_G: torch.Tensor) -> Rows:
    first, count = int(rows_G[0]), len(rows_G)
    consecutive = count == 1 or torch.equal(rows_G, torch.arange(first, first + count, device=rows_G.device))
    return slice(first, first + count) if consecutive else rows_G


def picked(values: torch.Tensor, rows: Rows) -> torch.Tensor:
    """The rows G x ... of `values`; a view if they are consecutive, so that their maps are not copied."""
    return values[rows] if isinstance(rows, slice) else values.index_select(0, rows)


def add_products(total_BLC: torch.Tensor, rows: Rows, *factors: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Add the sum of the products G x L x C to the rows of `total`, in the order of the pairs."""
    if isinstance(rows, slice):
        for left, right in factors:
            total_BLC[rows].baddbmm_(left, right)
        return
    summed = torch.bmm(*factors[0])
    for left, right in factors[1:]:
        summed.baddbmm_(left, right)
    total_BLC.index_add_(0, rows, summed)


def add_rows(total: torch.Tensor, rows: Rows, values: torch.Tensor, alpha: int = 1) -> None:
    """Add alpha times the values G x ... to the rows of `total`, in the order of the pairs."""
    if isinstance(rows, slice):
        total[rows].add_(values, alpha=alpha)
    else:
        total.index_add_(0, rows, values, alpha=alpha)


def distance_floor(norm_NL: torch.Tensor) -> torch.Tensor:
    """The smallest |f - w|, 1e-6 of the anchor's norm. It replaces smaller ones, with zero gradient."""
    floor: float = DISTANCE_FLOOR**0.5
    return floor * norm_NL.clamp_min(NORM_FLOOR)


def similarity_backward(
    probability_GLL: torch.Tensor, grad_probability_GLL: torch.Tensor, similarity_GLL: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Backward through P = softmax(beta S) and S = <f_a/|f_a|, f_k/|f_k|>, for the pairs of a block.

    Returns dS (G x L x L) and the sums over s and over p of dS * S, the parts of the gradient along f_a and f_k that
    normalising removes. `grad_probability_GLL` is overwritten.
    """
    grad = grad_probability_GLL.sub_((probability_GLL * grad_probability_GLL).sum(-1, keepdim=True))
    grad.mul_(probability_GLL).mul_(beta)
    along = grad * similarity_GLL
    return grad, along.sum(2), along.sum(1)
