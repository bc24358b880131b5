"""Correspondences for looking at: what they say must rebuild what CMAAM's own definition rebuilds."""

import pytest
import torch

from kernels.alignment.reference import soft_align
from tacaf.model.cmaam import CmaamConfig
from tacaf.model.correspondence import LAYERS, correspond, correspondences, layer_maps, mean_maps, shown_correspondence
from tacaf.vocabulary import Modality
from tests.model.cases import randomise_norms, tiny_model


def images(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 3, 96, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model():
    made = tiny_model(cmaam={"beta": 9.0}).eval()
    randomise_norms(made)
    return made


def rows(maps_NCHW: torch.Tensor) -> torch.Tensor:
    return maps_NCHW.flatten(2).mT


@pytest.mark.parametrize("layer", LAYERS)
def test_the_matching_rebuilds_what_soft_align_rebuilds(model, layer):
    query, other = images(2, seed=1), images(2, seed=2)
    found = correspondences(model, query, Modality.INFRARED, other, Modality.VISIBLE)[layer]
    query_NLC = rows(layer_maps(model, query, Modality.INFRARED)[layer])
    other_NLC = rows(layer_maps(model, other, Modality.VISIBLE)[layer])
    mask_BL = torch.cat([found.query_mask_NL, found.other_mask_NL])
    anchor_N, target_N = torch.tensor([0, 1]), torch.tensor([2, 3])
    reconstruction_NLC, distance_NL, comask_NL = soft_align(
        torch.cat([query_NLC, other_NLC]), mask_BL, anchor_N, target_N, beta=9.0
    )
    mask_NL1 = found.query_mask_NL[..., None]
    rebuilt_NLC = mask_NL1 * (found.matching_NLL @ other_NLC) + (1 - mask_NL1) * query_NLC
    torch.testing.assert_close(rebuilt_NLC, reconstruction_NLC, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((rebuilt_NLC - query_NLC).norm(dim=-1), distance_NL, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.comask_NL, comask_NL, rtol=1e-4, atol=1e-5)
    assert found.height * found.width == found.matching_NLL.shape[1] == query_NLC.shape[1]
    assert distance_NL.max() > 0.01, "a pair that differs"


def test_the_masks_are_the_norms_between_their_least_and_greatest(model):
    maps_BCHW = layer_maps(model, images(1, seed=1), Modality.VISIBLE)[4]
    mask_L = correspond(model.config.cmaam, maps_BCHW, maps_BCHW).query_mask_NL[0]
    norms = [float(maps_BCHW[0, :, y, x].double().norm()) for y in range(6) for x in range(2)]
    expected = [(norm - min(norms)) / (max(norms) - min(norms)) for norm in norms]
    torch.testing.assert_close(mask_L, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_a_model_of_deviations_shows_what_an_empty_image_does_not_have():
    made = tiny_model(cmaam={"mask": "deviation"}).eval()
    randomise_norms(made)
    query, other = images(2, seed=1), images(2, seed=2)
    found = correspondences(made, query, Modality.VISIBLE, other, Modality.INFRARED)
    for layer in LAYERS:
        one = found[layer]
        for maps, shown, kind in (
            (query, one.query_mask_NL, Modality.VISIBLE),
            (other, one.other_mask_NL, Modality.INFRARED),
        ):
            seen, nothing = (rows(layer_maps(made, each, kind)[layer]) for each in (maps, torch.zeros(1, 3, 96, 32)))
            norms = (seen - nothing).norm(dim=-1)
            low, high = norms.amin(1, keepdim=True), norms.amax(1, keepdim=True)
            torch.testing.assert_close(shown, (norms - low) / (high - low), rtol=1e-4, atol=1e-4)
    # an image of a pair is masked alike, whoever else is there
    alone = correspondences(made, query[:1], Modality.VISIBLE, other[:1], Modality.INFRARED)[4]
    torch.testing.assert_close(alone.query_mask_NL, found[4].query_mask_NL[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mask", ["norm", "deviation"])
def test_pictures_show_layer_3_and_deviations_whatever_the_training_used(mask):
    trained = tiny_model(cmaam={"mask": mask}).eval()
    randomise_norms(trained)
    query, other, several = images(1, seed=1), images(1, seed=2), images(5, seed=3)
    means = mean_maps(trained, {Modality.INFRARED: several, Modality.VISIBLE: several[:0]})
    found = shown_correspondence(trained, query, Modality.INFRARED, other, Modality.VISIBLE, means)
    for one, nothing, shown, kind in (
        (query, several, found.query_mask_NL, Modality.INFRARED),
        (other, torch.zeros_like(other), found.other_mask_NL, Modality.VISIBLE),  # no visible image to compare with
    ):
        seen, mean = (rows(layer_maps(trained, each, kind)[3]) for each in (one, nothing))
        norms = (seen - mean.mean(0)).norm(dim=-1)
        low, high = norms.amin(1, keepdim=True), norms.amax(1, keepdim=True)
        torch.testing.assert_close(shown, (norms - low) / (high - low), rtol=1e-4, atol=1e-4)
    expected = correspondences(trained, query, Modality.INFRARED, other, Modality.VISIBLE)[3]
    torch.testing.assert_close(found.matching_NLL, expected.matching_NLL)


def test_each_modality_goes_through_its_own_stem(model):
    same = images(1, seed=3)
    across = correspondences(model, same, Modality.INFRARED, same, Modality.VISIBLE)[4]
    within = correspondences(model, same, Modality.INFRARED, same, Modality.INFRARED)[4]
    torch.testing.assert_close(within.query_mask_NL, within.other_mask_NL)
    assert (across.query_mask_NL - across.other_mask_NL).abs().max() > 0.01


def test_a_moved_image_is_found_where_it_went():
    draw = torch.Generator().manual_seed(0)
    query_NCHW = torch.rand(1, 16, 3, 2, generator=draw)
    other_NCHW = query_NCHW.roll(1, dims=2)  # one row further down
    found = correspond(CmaamConfig(beta=500.0), query_NCHW, other_NCHW)
    assert found.matching_NLL[0].argmax(dim=1).tolist() == [2, 3, 4, 5, 0, 1]
    torch.testing.assert_close(found.matching_NLL.sum(2), torch.ones(1, 6))


def test_the_smoothed_matching_is_the_one_that_was_trained():
    draw = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 16, 3, 2, generator=draw)
    config = CmaamConfig(beta=5.0, self_similarity=0.5)
    found = correspond(config, maps[:1], maps[1:])
    mask_BL = torch.cat([found.query_mask_NL, found.other_mask_NL])
    first, second = torch.tensor([0]), torch.tensor([1])
    _, _, comask_NL = soft_align(rows(maps), mask_BL, first, second, 5.0, self_similarity=0.5)
    torch.testing.assert_close(found.comask_NL, comask_NL)
    plain = correspond(CmaamConfig(beta=5.0), maps[:1], maps[1:])
    assert (plain.matching_NLL - found.matching_NLL).abs().max() > 1e-3


def test_a_model_in_training_is_refused():
    with pytest.raises(AssertionError, match="call eval"):
        layer_maps(tiny_model(), images(1, seed=1), Modality.VISIBLE)
