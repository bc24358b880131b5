"""What both halves of the plain path need: blocks of pairs, norms, the distance's floor, the gradient of the softmax.

Legend: B images, L positions, C channels, N pairs, G pairs of a block.
"""

from collections.abc import Iterator

import torch

from kernels.alignment.reference import DISTANCE_FLOOR, NORM_FLOOR

# Where |f - w| < 0.1 |f|, the square of the distance in the CPU's Gram form has lost two of float32's seven digits.
CANCELS = 0.01
# How many numbers the maps of a block have. Each operation processes several small maps at once, because a call costs
# some microseconds whatever its size; a larger block would not fit the cache of a core.
BLOCK_NUMBERS = 2**17
LEAST_PAIRS = 4  # of a block: with fewer, processing them at once saves less time than copying them costs


def pairs_at_once(features_BLC: torch.Tensor) -> int:
    _, length, channels = features_BLC.shape
    pairs = BLOCK_NUMBERS // (length * channels)
    return pairs if pairs >= LEAST_PAIRS else 1


def blocks(features_BLC: torch.Tensor, *rows: torch.Tensor) -> Iterator[tuple[slice, list[torch.Tensor]]]:
    """Yield slices of the pairs, each with the given row numbers of its pairs."""
    at_once = pairs_at_once(features_BLC)
    for first in range(0, len(rows[0]), at_once):
        block = slice(first, first + at_once)
        yield block, [each[block] for each in rows]


def picked(values: torch.Tensor, rows_G: torch.Tensor) -> torch.Tensor:
    """The rows G x ... of `values`; a view if there is one row, so that large maps are not copied."""
    return values.narrow(0, int(rows_G), 1) if len(rows_G) == 1 else values[rows_G]


def add_products(total_BLC: torch.Tensor, rows_G: torch.Tensor, *factors: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Add the sum of the products G x L x C to the rows of `total`, in the order of the pairs."""
    if len(rows_G) == 1:
        own = picked(total_BLC, rows_G)
        for left, right in factors:
            own.baddbmm_(left, right)
        return
    summed = torch.bmm(*factors[0])
    for left, right in factors[1:]:
        summed.baddbmm_(left, right)
    total_BLC.index_add_(0, rows_G, summed)


def add_rows(total: torch.Tensor, rows_G: torch.Tensor, values: torch.Tensor, alpha: int = 1) -> None:
    """Add alpha times the values G x ... to the rows of `total`, in the order of the pairs."""
    if len(rows_G) == 1:
        picked(total, rows_G).add_(values, alpha=alpha)
    else:
        total.index_add_(0, rows_G, values, alpha=alpha)


def norms(features_BLC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Norms B x L and their inverses; the inverse is 0 for a vector too short to have a direction."""
    norm = torch.linalg.vector_norm(features_BLC, dim=-1)
    return norm, torch.where(norm > NORM_FLOOR, norm.reciprocal(), 0.0)


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
