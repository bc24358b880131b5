"""Which position of an image corresponds to which of another one, and where the person is: CMAAM's matching and masks.

CMAAM is not run at test time. Here its formulas (method §4) are applied to the maps of a trained model, for people to
look at; the two images need not show one identity. N pairs, C channels, L = H*W positions of a map, row by row.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch

from kernels.alignment import feature_mask
from kernels.alignment.reference import comask, matching
from tacaf.model.cmaam import CmaamConfig
from tacaf.model.pooling import rows_BHWC
from tacaf.model.tacafnet import TacafNet
from tacaf.vocabulary import Modality

Layer = Literal[3, 4]
LAYERS: tuple[Layer, Layer] = (3, 4)
SHOWN_LAYER: Layer = 3
COMPARED = 16  # images of a modality, at most, whose mean a mask deviates from


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

    `config` gives beta, the self-similarity and the kind of mask, as in training; they count even where CMAAM was
    switched off. `empty`, two maps 1 x C x H x W, replace the modalities' means where the mask is of deviations.
    """
    height, width = query_NCHW.shape[2:]
    query_NLC, other_NLC = _rows(query_NCHW), _rows(other_NCHW)
    if config.mask == "deviation":
        assert empty is not None, "the mask of deviations needs maps to deviate from"
        query_mask_NL = feature_mask(_rows(query_NCHW - empty[0]))
        other_mask_NL = feature_mask(_rows(other_NCHW - empty[1]))
    else:
        query_mask_NL, other_mask_NL = feature_mask(query_NLC), feature_mask(other_NLC)
    matching_NLL = matching(query_NLC, other_NLC, config.beta, config.self_similarity)
    comask_NL = comask(matching_NLL, query_mask_NL, other_mask_NL)
    return Correspondence(matching_NLL, query_mask_NL, other_mask_NL, comask_NL, height, width)


def correspondences(
    model: TacafNet,
    query_NCHW: torch.Tensor,
    query_modality: Modality,
    other_NCHW: torch.Tensor,
    other_modality: Modality,
) -> dict[Layer, Correspondence]:
    """Layer to correspondence of N query images with N others, preprocessed as for `embed`; any two modalities.

    The configuration is the model's own. Where its mask is of deviations, the maps of an empty image, of the mean
    colour, replace the mean of a batch, which a single pair does not have.
    """
    query_maps, other_maps = (
        layer_maps(model, images, modality)
        for images, modality in ((query_NCHW, query_modality), (other_NCHW, other_modality))
    )
    empty: dict[Layer, tuple[torch.Tensor, torch.Tensor]] = {}
    if model.config.cmaam.mask == "deviation":
        nothing = torch.zeros_like(query_NCHW[:1])
        blank, other_blank = (layer_maps(model, nothing, modality) for modality in (query_modality, other_modality))
        empty = {layer: (blank[layer], other_blank[layer]) for layer in LAYERS}
    return {
        layer: correspond(model.config.cmaam, query_maps[layer], other_maps[layer], empty.get(layer))
        for layer in LAYERS
    }


def mean_maps(model: TacafNet, images: Mapping[Modality, torch.Tensor]) -> dict[Modality, torch.Tensor]:
    """Modality to the mean of its images' maps on the layer that is shown, 1 x C x H x W; images as for `embed`."""
    found = {kind: layer_maps(model, several, kind)[SHOWN_LAYER] for kind, several in images.items() if len(several)}
    return {kind: maps_NCHW.mean(0, keepdim=True) for kind, maps_NCHW in found.items()}


def shown_correspondence(
    model: TacafNet,
    query_NCHW: torch.Tensor,
    query_modality: Modality,
    other_NCHW: torch.Tensor,
    other_modality: Modality,
    means: Mapping[Modality, torch.Tensor],
) -> Correspondence:
    """What pictures show: the matching on layer 3, with masks of deviations, whatever the training used.

    means: what `mean_maps` gives for some images of each modality (ours). If a modality is missing, its masks show how
    far the features are from those of an empty image. On average over trained models these masks follow the person
    better than the norm, and better than masks of layer 4 (`perf/checks/person_masks.py`). On layer 3 the matching also
    finds the right position more often (`perf/checks/sanity.py`).
    """
    sides = ((query_NCHW, query_modality), (other_NCHW, other_modality))
    maps, middles = [], []
    for images_NCHW, modality in sides:
        maps.append(layer_maps(model, images_NCHW, modality)[SHOWN_LAYER])
        nothing = means.get(modality)
        if nothing is None:
            nothing = layer_maps(model, torch.zeros_like(images_NCHW[:1]), modality)[SHOWN_LAYER]
        middles.append(nothing)
    config = model.config.cmaam.model_copy(update={"mask": "deviation"})
    return correspond(config, maps[0], maps[1], (middles[0], middles[1]))


def _rows(maps_NCHW: torch.Tensor) -> torch.Tensor:
    return rows_BHWC(maps_NCHW).flatten(1, 2).float()
