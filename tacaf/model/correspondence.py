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
    query_mask_NL: torch.Tensor  # person mask in [0, 1]: the norm of the features, min-max over the image
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
def correspond(config: CmaamConfig, query_NCHW: torch.Tensor, other_NCHW: torch.Tensor) -> Correspondence:
    """Row n of the query's maps against row n of the other's: two maps of the same layer and size.

    `config` gives beta and the self-similarity, as in training; they count even where CMAAM was switched off.
    """
    height, width = query_NCHW.shape[2:]
    query_NLC, other_NLC = (rows_BHWC(maps).flatten(1, 2).float() for maps in (query_NCHW, other_NCHW))
    matching_NLL = matching(query_NLC, other_NLC, config.beta, config.self_similarity)
    query_mask_NL, other_mask_NL = feature_mask(query_NLC), feature_mask(other_NLC)
    both_NL = query_mask_NL * (matching_NLL @ other_mask_NL[..., None])[..., 0]
    return Correspondence(matching_NLL, query_mask_NL, other_mask_NL, minmax(both_NL), height, width)


def correspondences(
    model: TacafNet,
    query_NCHW: torch.Tensor,
    query_modality: Modality,
    other_NCHW: torch.Tensor,
    other_modality: Modality,
) -> dict[Layer, Correspondence]:
    """Layer to correspondence of N query images with N others, preprocessed as for `embed`; any two modalities."""
    query_maps, other_maps = (
        layer_maps(model, *images) for images in ((query_NCHW, query_modality), (other_NCHW, other_modality))
    )
    return {layer: correspond(model.config.cmaam, query_maps[layer], other_maps[layer]) for layer in LAYERS}
