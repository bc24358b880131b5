"""Terms that both halves of the plain path need: norms, the floor of the distance, and the gradient of the softmax.

Legend: B images, L positions, C channels, N pairs.
"""

import torch

from kernels.alignment.reference import DISTANCE_FLOOR, NORM_FLOOR

# Below |f - w| = .1 |f| the CPU's Gram form of the distance has lost two of float32's seven digits in the square.
CANCELS = 0.01


def norms(features_BLC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Norms B x L and their inverses; the inverse is 0 for a vector too short to have a direction."""
    norm = torch.linalg.vector_norm(features_BLC, dim=-1)
    return norm, torch.where(norm > NORM_FLOOR, norm.reciprocal(), 0.0)


def distance_floor(norm_NL: torch.Tensor) -> torch.Tensor:
    """The least |f - w| that counts: 1e-6 of the anchor's norm. Below it the distance is this, with zero gradient."""
    floor: float = DISTANCE_FLOOR**0.5
    return floor * norm_NL.clamp_min(NORM_FLOOR)


def similarity_backward(
    probability_LL: torch.Tensor, grad_probability_LL: torch.Tensor, similarity_LL: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Through P = softmax(beta S) and S = <f_a/|f_a|, f_k/|f_k|>, for one pair.

    Returns dS (L x L) and the sums over s and over p of dS * S, the part of the gradient that is along f_a and f_k
    and that normalising takes out. `grad_probability_LL` is overwritten.
    """
    grad = grad_probability_LL.sub_((probability_LL * grad_probability_LL).sum(-1, keepdim=True))
    grad.mul_(probability_LL).mul_(beta)
    along = grad * similarity_LL
    return grad, along.sum(1), along.sum(0)
