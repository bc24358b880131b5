"""CMAAM, the cross-modal alignment attention: every image rebuilt from another one of the other modality.

Paper §4, LbA's CMAlign; exact in method §4. It has no parameters and is not run at test time. B images, N pairs,
C channels, H x W map, L = H*W positions; p is an anchor position, s a target position.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator

from kernels.alignment import align as align_layer
from kernels.alignment import feature_mask
from kernels.common import compute_dtype
from tacaf.distributed import sum_over_ranks, world_size
from tacaf.interfaces import Alignment, Pairs
from tacaf.model.pairs import Direction
from tacaf.model.pooling import map_BCHW, rows_BHWC
from tacaf.settings import Settings

MaskKind = Literal["norm", "deviation"]
Matched = Literal["features", "deviations"]


class CmaamConfig(Settings):
    """Where and how sharply features are aligned across modalities in training."""

    enabled: bool = Field(True, description="Align features across modalities in training; free at test time.")
    layers: tuple[Literal[3, 4], ...] = Field(
        (3, 4), description="The backbone stages whose maps are aligned: [3, 4], [3] or [4]."
    )
    beta: float = Field(
        50.0, gt=0, le=1e6, description="Sharpness of the matching: softmax(beta * cosine) (50 in LbA)."
    )
    mask: MaskKind = Field(
        "norm",
        description=(
            "The person mask, from 0 to 1 over an image's positions: norm of the features (LbA), or of their deviation"
            " from the mean of the batch's images of that modality at that position (ours, because in a network from"
            " scratch the norm follows the border, not the person)."
        ),
    )
    matching: Matched = Field(
        "features",
        description=(
            "What the matching is read from: the features (LbA), or their deviations from the same mean (ours, because"
            " trained layer-4 features hold their place in the image, and the best match is where it was; slow, plain)."
        ),
    )
    direction: Direction = Field(
        "both", description="both: every image is an anchor; visible_to_infrared: visible images only."
    )
    consistency: bool = Field(
        True, description="Classify the reconstructions too (one more pass of layer 4); turn off where loss.ic is 0."
    )
    recompute: bool = Field(
        False, description="Run layer 4 on the layer-3 reconstructions again in backward instead of keeping its maps."
    )
    self_similarity: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the matching smoothed by the anchor's similarity to itself (slow, plain).",
    )

    @model_validator(mode="after")
    def _each_layer_once(self) -> "CmaamConfig":
        if self.layers not in ((3, 4), (3,), (4,)):
            raise ValueError(f"layers: expected [3, 4], [3] or [4], got {list(self.layers)}; take one of them")
        return self


def matching(anchor_NLC: torch.Tensor, target_NLC: torch.Tensor, beta: float, weight: float = 0.0) -> torch.Tensor:
    """Where each anchor position lies in the target: softmax over its positions of beta times the cosine (eq. 1, 2).

    anchor_NLC: N x L x C, target_NLC: N x S x C, float32 or float64. Returns N x L x S whose rows sum to 1.
    `weight` is the share of the smoothing by the anchor's similarity to itself (`plain_align`).
    """
    unit_anchor, unit_target = F.normalize(anchor_NLC, dim=-1), F.normalize(target_NLC, dim=-1)
    similarity_NLS = unit_anchor @ unit_target.mT
    if weight > 0:
        itself_NLL = (beta * unit_anchor @ unit_anchor.mT).softmax(dim=-1)
        similarity_NLS = torch.lerp(similarity_NLS, itself_NLL @ similarity_NLS, weight)
    return (beta * similarity_NLS).softmax(dim=-1)


def plain_align(
    features_BLC: torch.Tensor,
    mask_BL: torch.Tensor,
    anchor_N: torch.Tensor,
    target_N: torch.Tensor,
    beta: float,
    matched_BLC: torch.Tensor | None = None,
    weight: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`kernels.alignment.soft_align` in plain float32 PyTorch, with what the kernels have not.

    matched_BLC: what the matching is read from, if not the features. weight: S is replaced by (1 - weight) S + weight
    softmax(beta S_aa) S, where S_aa are the anchor's similarities to itself ("pedestrian feature self-similarity",
    paper §4; the mixing is ours). Returns reconstruction N x L x C, distance N x L and the detached co-mask N x L.
    """
    matched_BLC = features_BLC if matched_BLC is None else matched_BLC
    matching_NLL = matching(matched_BLC[anchor_N].float(), matched_BLC[target_N].float(), beta, weight)
    anchor_NLC, target_NLC = features_BLC[anchor_N].float(), features_BLC[target_N].float()
    mask_NL = mask_BL[anchor_N]
    gap_NLC = anchor_NLC - matching_NLL @ target_NLC
    # The floor and the mask outside the root keep the gradient finite where mask or gap is 0 (method §4.1).
    floor_NL = 1e-12 * anchor_NLC.detach().square().sum(-1) + torch.finfo(torch.float32).tiny
    distance_NL = mask_NL * gap_NLC.square().sum(-1).clamp_min(floor_NL).sqrt()
    both_NL = mask_NL * (matching_NLL.detach() @ mask_BL[target_N][..., None])[..., 0]
    low, high = both_NL.amin(1, keepdim=True), both_NL.amax(1, keepdim=True)
    reconstruction_NLC = anchor_NLC - mask_NL[..., None] * gap_NLC
    return reconstruction_NLC.to(features_BLC.dtype), distance_NL, (both_NL - low) / (high - low + 1e-12)


def modality_means(features_BLC: torch.Tensor, visible: int) -> torch.Tensor:
    """Mean over all ranks' visible and infrared images at every position, 2 x L x C, detached, float32 or float64.

    The first `visible` rows are the visible images; every rank has as many of each. This is what all images have at a
    place: the modality's offset, and the answer to the padding at the border. Source: ours.
    """
    values_BLC = features_BLC.detach().to(compute_dtype(features_BLC))
    modalities = values_BLC.split([visible, len(values_BLC) - visible])
    total_MLC = torch.stack([part.sum(dim=0) / max(1, len(part)) for part in modalities])
    return sum_over_ranks(total_MLC) / world_size()


def deviations(features_BLC: torch.Tensor, mean_MLC: torch.Tensor, visible: int) -> torch.Tensor:
    """Features less their modality's mean at each position, in the features' dtype; the mean is a constant."""
    modalities = features_BLC.split([visible, len(features_BLC) - visible])
    less = [part - mean_LC for part, mean_LC in zip(modalities, mean_MLC, strict=True)]
    return torch.cat(less).to(features_BLC.dtype)


def person_mask(features_BLC: torch.Tensor, visible: int, kind: MaskKind) -> torch.Tensor:
    """Where the person is, float32 B x L in [0, 1], detached; the first `visible` rows are the visible images.

    norm: LbA, method §4 eq. 4. deviation: the norm of the `deviations`; ours, because in a network from scratch the
    features' own norm follows the border, not the person.
    """
    if kind == "deviation":
        features_BLC = deviations(features_BLC.detach(), modality_means(features_BLC, visible), visible)
    return feature_mask(features_BLC)


def align(
    config: CmaamConfig, features_BCHW: torch.Tensor, pairs: Pairs, visible: int
) -> tuple[torch.Tensor, Alignment]:
    """One layer: the positive's reconstruction, N x C x H x W channels-last, and what the dense triplet needs.

    The first `visible` of the B maps are of visible images.
    """
    height, width = features_BCHW.shape[2:]
    with torch.autocast(features_BCHW.device.type, enabled=False):
        features_BLC = rows_BHWC(features_BCHW).flatten(1, 2)
        mask_BL = person_mask(features_BLC, visible, config.mask)
        positive = (features_BLC, mask_BL, pairs.anchor_N, pairs.positive_N, config.beta)
        negative = (features_BLC, mask_BL, pairs.anchor_N, pairs.negative_N, config.beta)
        if config.self_similarity > 0 or config.matching == "deviations":
            matched_BLC = features_BLC
            if config.matching == "deviations":
                matched_BLC = deviations(features_BLC, modality_means(features_BLC, visible), visible)
            reconstruction_NLC, near_NL, comask_NL = plain_align(*positive, matched_BLC, config.self_similarity)
            far_NL = plain_align(*negative, matched_BLC, config.self_similarity)[1]
        else:
            reconstruction_NLC, near_NL, far_NL, comask_NL = align_layer(features_BLC, mask_BL, *pairs, config.beta)
    return map_BCHW(reconstruction_NLC, height, width), Alignment(near_NL, far_NL, comask_NL)
