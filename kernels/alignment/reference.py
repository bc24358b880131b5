"""The definition of soft cross-modal alignment in plain PyTorch: contract and test truth (paper §4; LbA's CMAlign).

Legend: B images, L = H*W positions (p of the anchor, s of the target), C channels, N pairs.
"""

import torch

from kernels.common import DISTANCE_FLOOR, NORM_FLOOR, compute_dtype, minmax


def soft_align(
    features_BLC: torch.Tensor, mask_BL: torch.Tensor, anchor_N: torch.Tensor, target_N: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rebuild each anchor image from its target's features (method §4, eq. 1-6).

    features_BLC: B x L x C, channels-last maps flattened; mask_BL: B x L in [0, 1], carries no gradient;
    anchor_N, target_N: int64 rows of the batch; beta multiplies the cosine similarity.
    Returns reconstruction N x L x C (dtype of the features), distance N x L and co-mask N x L (float32; float64 for
    float64); the co-mask carries no gradient.
    """
    with torch.autocast(features_BLC.device.type, enabled=False):
        features = features_BLC.to(compute_dtype(features_BLC))
        mask = mask_BL.detach().to(features.dtype)
        anchor, target, anchor_mask = features[anchor_N], features[target_N], mask[anchor_N].unsqueeze(-1)
        probability_NLL = torch.softmax(beta * (_unit(anchor) @ _unit(target).mT), dim=-1)  # eq. 1, 2
        warp = probability_NLL @ target  # eq. 3, un-normalised values
        reconstruction = anchor_mask * warp + (1 - anchor_mask) * anchor  # eq. 5
        # d = |f - reconstruction| = m |f - w|. The mask stays outside the root: inside, m = 0 makes the gradient NaN
        # (ours).
        squared = (anchor - warp).square().sum(-1)
        floor = DISTANCE_FLOOR * anchor.detach().norm(dim=-1).clamp_min(NORM_FLOOR).square()
        distance = anchor_mask.squeeze(-1) * torch.where(squared > floor, squared, floor).sqrt()
        comask = minmax(anchor_mask.squeeze(-1) * (probability_NLL.detach() @ mask[target_N].unsqueeze(-1)).squeeze(-1))
    return reconstruction.to(features_BLC.dtype), distance, comask


def align_distance(
    features_BLC: torch.Tensor, mask_BL: torch.Tensor, anchor_N: torch.Tensor, target_N: torch.Tensor, beta: float
) -> torch.Tensor:
    """How far each anchor feature is from its reconstruction out of the target (method §4, eq. 1-5).

    features_BLC: B x L x C, channels-last maps flattened; mask_BL: B x L in [0, 1], carries no gradient;
    anchor_N, target_N: int64 rows of the batch; beta multiplies the cosine similarity.
    Returns distance N x L over channels, float32 (float64 for float64).
    """
    with torch.autocast(features_BLC.device.type, enabled=False):
        features = features_BLC.to(compute_dtype(features_BLC))
        anchor, target = features[anchor_N], features[target_N]
        probability_NLL = torch.softmax(beta * (_unit(anchor) @ _unit(target).mT), dim=-1)
        warp = probability_NLL @ target
        # |f - (m w + (1 - m) f)| = m |f - w|. The mask stays outside the root: inside, m = 0 makes the gradient NaN
        # (ours).
        squared = (anchor - warp).square().sum(-1)
        floor = DISTANCE_FLOOR * anchor.detach().norm(dim=-1).clamp_min(NORM_FLOOR).square()
        return mask_BL.detach().to(features.dtype)[anchor_N] * torch.where(squared > floor, squared, floor).sqrt()


def align(
    features_BLC: torch.Tensor,
    mask_BL: torch.Tensor,
    anchor_N: torch.Tensor,
    positive_N: torch.Tensor,
    negative_N: torch.Tensor,
    beta: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A layer's pairs together: `soft_align` with the positives, `align_distance` with the negatives.

    Returns reconstruction N x L x C, both distances N x L and the co-mask N x L.
    """
    reconstruction, positive_distance, comask = soft_align(features_BLC, mask_BL, anchor_N, positive_N, beta)
    negative_distance = align_distance(features_BLC, mask_BL, anchor_N, negative_N, beta)
    return reconstruction, positive_distance, negative_distance, comask


def _unit(features_NLC: torch.Tensor) -> torch.Tensor:
    """f / |f|; zero, in value and gradient, for a vector without a direction (ours: f / 1e-12 would explode)."""
    norm = features_NLC.norm(dim=-1, keepdim=True)
    alive = norm > NORM_FLOOR
    return torch.where(alive, features_NLC / torch.where(alive, norm, 1.0), 0.0)
