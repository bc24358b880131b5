"""CMAAM, the cross-modal alignment attention: every image rebuilt from another one of the other modality.

Paper §4, LbA's CMAlign; exact in method §4. It has no parameters and is not run at test time. B images, N pairs,
C channels, H x W map, L = H*W positions; p is an anchor position, s a target position.
"""

from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from kernels.alignment import align as align_pairs
from kernels.alignment import feature_mask, reference
from kernels.common.dtypes import compute_dtype
from kernels.common.path import Backend
from tacaf.distributed import sum_over_ranks, world_size
from tacaf.interfaces import Alignment, Pairs
from tacaf.model.pairs import Direction
from tacaf.model.pooling import map_BCHW, rows_BHWC
from tacaf.settings import Settings

MaskKind = Literal["norm", "deviation"]


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
    direction: Direction = Field(
        "both", description="both: every image is an anchor; visible_to_infrared: visible images only."
    )
    consistency: bool = Field(
        True, description="Classify the reconstructions too (one more pass of layer 4); turn off where loss.ic is 0."
    )
    recompute: bool = Field(
        False,
        description=(
            "Run layer 4 on the layer-3 reconstructions again in backward instead of keeping its maps: less "
            "memory, more work."
        ),
    )
    self_similarity: float = Field(
        0.0,
        ge=0,
        le=1,
        description=(
            "Share of the matching that is smoothed by the anchor's similarity to itself; the fast kernels do not"
            " support it."
        ),
    )

    @model_validator(mode="before")
    @classmethod
    def _without_matching(cls, values: Any) -> Any:
        """Files written before the key was removed name the only matching that is left."""
        if not isinstance(values, dict) or "matching" not in values:
            return values
        if values["matching"] != "features":
            raise ValueError(
                f"matching: expected features, got {values['matching']!r}; the key was removed, because matching"
                " deviations lowers accuracy: delete it"
            )
        return {name: value for name, value in values.items() if name != "matching"}

    @model_validator(mode="after")
    def _each_layer_once(self) -> "CmaamConfig":
        if self.layers not in ((3, 4), (3,), (4,)):
            raise ValueError(f"layers: expected [3, 4], [3] or [4], got {list(self.layers)}; take one of them")
        return self


def modality_means(features_BLC: torch.Tensor, visible: int) -> torch.Tensor:
    """Mean over all ranks' visible and infrared images at every position, 2 x L x C, detached, float32 or float64.

    The first `visible` rows are the visible images; every rank has the same number of each. This mean is what all
    images have in common at a position: the modality's offset, and the response to the padding at the border (ours).
    """
    values_BLC = features_BLC.detach().to(compute_dtype(features_BLC))
    modalities = torch.split(values_BLC, [visible, len(values_BLC) - visible])
    total_MLC = torch.stack([part.sum(dim=0) / max(1, len(part)) for part in modalities])
    mean_MLC: torch.Tensor = sum_over_ranks(total_MLC) / world_size()
    return mean_MLC


def person_mask(features_BLC: torch.Tensor, visible: int, kind: MaskKind) -> torch.Tensor:
    """Where the person is, float32 B x L in [0, 1], detached; the first `visible` rows are the visible images.

    norm: LbA, method §4 eq. 4. deviation: the norm of the features less their modality's mean at each position; ours,
    because in a network from scratch the features' own norm follows the border, not the person.
    """
    if kind == "deviation":
        modalities = torch.split(features_BLC.detach(), [visible, len(features_BLC) - visible])
        means_MLC = modality_means(features_BLC, visible)
        deviations = [part - mean_LC for part, mean_LC in zip(modalities, means_MLC, strict=True)]
        features_BLC = torch.cat(deviations).to(features_BLC.dtype)
    return feature_mask(features_BLC)


def align(
    config: CmaamConfig, features_BCHW: torch.Tensor, pairs: Pairs, visible: int, backend: Backend = "auto"
) -> tuple[torch.Tensor, Alignment]:
    """One layer: the positive's reconstruction, N x C x H x W channels-last, and what the dense triplet needs.

    The first `visible` of the B maps are of visible images. backend: as `kernels.alignment.align`; with self-similarity
    the definition runs, whatever it says.
    """
    height, width = features_BCHW.shape[2:]
    with torch.autocast(features_BCHW.device.type, enabled=False):
        features_BLC = rows_BHWC(features_BCHW).flatten(1, 2)
        inputs = (features_BLC, person_mask(features_BLC, visible, config.mask), *pairs, config.beta)
        if config.self_similarity > 0:
            aligned = reference.align(*inputs, config.self_similarity)
        else:
            aligned = align_pairs(*inputs, backend=backend)
    reconstruction_NLC, positive_NL, negative_NL, comask_NL = aligned
    return map_BCHW(reconstruction_NLC, height, width), Alignment(positive_NL, negative_NL, comask_NL)
