"""Where each place of an image lies in another one, and where the person is: CMAAM's matching and masks, to look at.

CMAAM is not run at test time; here its formulas (method §4) read the maps of a trained model, of two images that need
not be of one identity. N pairs, C channels, L = H*W positions of a map, row by row; p of the query, s of the other.
"""

from typing import Literal, NamedTuple

import torch

from kernels.common import feature_mask, minmax
from tacaf.model.cmaam import CmaamConfig, matching
from tacaf.model.pooling import rows_BHWC
from tacaf.model.tacafnet import TacafNet
from tacaf.vocabulary import Modality

Layer = Literal[3, 4]
LAYERS: tuple[Layer, Layer] = (3, 4)


class Correspondence(NamedTuple):
    """What CMAAM sees in N pairs of images on one layer; float32, on the maps' device."""

    matching_NLL: torch.Tensor  # N x L x L, row p: how much of query position p lies at each position s; sums to 1
    query_mask_NL: torch.Tensor  # person mask in [0, 1]: a norm (CmaamConfig.mask), min-max over the image
    other_mask_NL: torch.Tensor
    comask_NL: torch.Tensor  # query positions that are person here and land on the person there, in [0, 1]
    height: int  # of the map: L = height * width
    width: int


@torch.no_grad()
def layer_maps(model: TacafNet, images_BCHW: torch.Tensor, modality: Modality) -> dict[Layer, torch.Tensor]:
    """The layer-3 and layer-4 maps of images of one modality, B x C x H x W. The model must be in evaluation mode."""
    assert not model.training, "maps are read on running statistics: call eval() first"
    layer3_BCHW, layer4_BCHW = model.backbone(images_BCHW, len(images_BCHW) if modality is Modality.VISIBLE else 0)
    return {3: layer3_BCHW, 4: layer4_BCHW}


@torch.no_grad()
def correspond(
    config: CmaamConfig,
    query_NCHW: torch.Tensor,
    other_NCHW: torch.Tensor,
    empty: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Correspondence:
    """Row n of the query's maps against row n of the other's: two maps of the same layer and size.

    `config` gives beta, the self-similarity and what is matched and masked, as in training; they count even where CMAAM
    was switched off. `empty`, two maps 1 x C x H x W, stand in for the modalities' means where that is deviations.
    """
    height, width = query_NCHW.shape[2:]
    maps = (query_NCHW, other_NCHW)
    assert empty is not None or not of_deviations(config), "deviations need maps to deviate from"
    beyond = maps if empty is None else [each - nothing for each, nothing in zip(maps, empty, strict=True)]
    masked, matched = (
        [_rows(each) for each in (beyond if deviates else maps)]
        for deviates in (config.mask == "deviation", config.matching == "deviations")
    )
    query_mask_NL, other_mask_NL = map(feature_mask, masked)
    matching_NLL = matching(matched[0], matched[1], config.beta, config.self_similarity)
    both_NL = query_mask_NL * (matching_NLL @ other_mask_NL[..., None])[..., 0]
    return Correspondence(matching_NLL, query_mask_NL, other_mask_NL, minmax(both_NL), height, width)


def of_deviations(config: CmaamConfig) -> bool:
    return config.mask == "deviation" or config.matching == "deviations"


def correspondences(
    model: TacafNet,
    query_NCHW: torch.Tensor,
    query_modality: Modality,
    other_NCHW: torch.Tensor,
    other_modality: Modality,
    config: CmaamConfig | None = None,
) -> dict[Layer, Correspondence]:
    """Layer to correspondence of N query images with N others, preprocessed as for `embed`; any two modalities.

    `config`: the model's own unless given. Where it asks for deviations, the answer to an empty image, of the mean
    colour, stands in for the mean of a batch, which a single pair does not have.
    """
    config = config or model.config.cmaam
    query, other = (query_NCHW, query_modality), (other_NCHW, other_modality)
    query_maps, other_maps = (layer_maps(model, *images) for images in (query, other))
    empty: list[dict[Layer, torch.Tensor]] = []
    if of_deviations(config):
        empty = [layer_maps(model, torch.zeros_like(images[:1]), modality) for images, modality in (query, other)]
    return {
        layer: correspond(
            config, query_maps[layer], other_maps[layer], (empty[0][layer], empty[1][layer]) if empty else None
        )
        for layer in LAYERS
    }


def _rows(maps_NCHW: torch.Tensor) -> torch.Tensor:
    return rows_BHWC(maps_NCHW).flatten(1, 2).float()
