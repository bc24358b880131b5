"""The definition of soft cross-modal alignment in plain PyTorch, which tests compare with (paper §4; LbA's CMAlign).

`matching` and `comask` are the formulas of the attention itself, for any two maps; the operations combine them.
Legend: B images, L = H*W positions (p of the anchor, s of the target), C channels, N pairs.
"""

import torch

from kernels.alignment.mask import minmax
from kernels.common.dtypes import compute_dtype

NORM_FLOOR = 1e-12  # LbA clamps norms here; a shorter vector has no direction, so no gradient flows through it (ours)
DISTANCE_FLOOR = 1e-12  # the squared distance is at least this times the anchor's squared norm (ours, method §4.1)


def matching(
    anchor_NLC: torch.Tensor, target_NLC: torch.Tensor, beta: float, self_similarity: float = 0.0
) -> torch.Tensor:
    """How much of each anchor position is at each target position: P = softmax_s(beta * cosine) (eq. 1, 2).

    anchor_NLC: N x L x C, target_NLC: N x S x C, float32 or float64. Returns N x L x S; its rows sum to 1.
    self_similarity: replaces the cosines S by (1 - self_similarity) S + self_similarity softmax(beta S_aa) S, with the
    anchor's similarities to itself S_aa ("pedestrian feature self-similarity", paper §4; the mixing is ours).
    """
    anchor, target = _unit(anchor_NLC), _unit(target_NLC)
    similarity_NLS = anchor @ target.mT
    if self_similarity > 0:
        itself_NLL = torch.softmax(beta * anchor @ anchor.mT, dim=-1)
        similarity_NLS = torch.lerp(similarity_NLS, itself_NLL @ similarity_NLS, self_similarity)
    return torch.softmax(beta * similarity_NLS, dim=-1)


def comask(matching_NLS: torch.Tensor, anchor_mask_NL: torch.Tensor, target_mask_NS: torch.Tensor) -> torch.Tensor:
    """Anchor positions that show a person and match a person in the target, N x L in [0, 1].

    No gradient flows to the matching.
    """
    return minmax(anchor_mask_NL * (matching_NLS.detach() @ target_mask_NS.unsqueeze(-1)).squeeze(-1))  # eq. 6


def soft_align(
    features_BLC: torch.Tensor,
    mask_BL: torch.Tensor,
    anchor_N: torch.Tensor,
    target_N: torch.Tensor,
    beta: float,
    self_similarity: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rebuild each anchor image from its target's features (method §4, eq. 1-6).

    features_BLC: B x L x C, channels-last maps flattened; mask_BL: B x L in [0, 1], carries no gradient;
    anchor_N, target_N: int64 rows of the batch; beta multiplies the cosine; self_similarity as in `matching`.
    Returns reconstruction N x L x C (dtype of the features), distance N x L and co-mask N x L (float32; float64 for
    float64); the co-mask carries no gradient.
    """
    with torch.autocast(features_BLC.device.type, enabled=False):
        features = features_BLC.to(compute_dtype(features_BLC))
        mask = mask_BL.detach().to(features.dtype)
        anchor, target, anchor_mask = features[anchor_N], features[target_N], mask[anchor_N].unsqueeze(-1)
        probability_NLL = matching(anchor, target, beta, self_similarity)
        warp = probability_NLL @ target  # eq. 3, un-normalised values
        reconstruction = anchor_mask * warp + (1 - anchor_mask) * anchor  # eq. 5
        distance = _distance(anchor, warp, anchor_mask.squeeze(-1))
        shared = comask(probability_NLL, anchor_mask.squeeze(-1), mask[target_N])
    return reconstruction.to(features_BLC.dtype), distance, shared


def align_distance(
    features_BLC: torch.Tensor,
    mask_BL: torch.Tensor,
    anchor_N: torch.Tensor,
    target_N: torch.Tensor,
    beta: float,
    self_similarity: float = 0.0,
) -> torch.Tensor:
    """How far each anchor feature is from its reconstruction with the target's features (method §4, eq. 1-5).

    Arguments as in `soft_align`. Returns distance N x L over channels, float32 (float64 for float64).
    """
    with torch.autocast(features_BLC.device.type, enabled=False):
        features = features_BLC.to(compute_dtype(features_BLC))
        anchor, target = features[anchor_N], features[target_N]
        warp = matching(anchor, target, beta, self_similarity) @ target
        return _distance(anchor, warp, mask_BL.detach().to(features.dtype)[anchor_N])


def align(
    features_BLC: torch.Tensor,
    mask_BL: torch.Tensor,
    anchor_N: torch.Tensor,
    positive_N: torch.Tensor,
    negative_N: torch.Tensor,
    beta: float,
    self_similarity: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Align a layer's pairs together: `soft_align` with the positives, `align_distance` with the negatives.

    Returns reconstruction N x L x C, both distances N x L and the co-mask N x L.
    """
    shared = (features_BLC, mask_BL, anchor_N)
    reconstruction, positive_distance, comask_NL = soft_align(*shared, positive_N, beta, self_similarity)
    negative_distance = align_distance(*shared, negative_N, beta, self_similarity)
    return reconstruction, positive_distance, negative_distance, comask_NL


def _distance(anchor_NLC: torch.Tensor, warp_NLC: torch.Tensor, mask_NL: torch.Tensor) -> torch.Tensor:
    """|f - (m w + (1 - m) f)| = m |f - w| over channels, N x L.

    The mask stays outside the root (ours): inside, m = 0 would make the gradient NaN.
    """
    squared = (anchor_NLC - warp_NLC).square().sum(-1)
    floor = DISTANCE_FLOOR * anchor_NLC.detach().norm(dim=-1).clamp_min(NORM_FLOOR).square()
    return mask_NL * torch.where(squared > floor, squared, floor).sqrt()


def _unit(features_NLC: torch.Tensor) -> torch.Tensor:
    """f / |f|; zero, in value and gradient, for a vector without a direction (ours: f / 1e-12 would explode)."""
    norm = features_NLC.norm(dim=-1, keepdim=True)
    alive = norm > NORM_FLOOR
    return torch.where(alive, features_NLC / torch.where(alive, norm, 1.0), 0.0)
