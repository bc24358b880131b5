"""CMAAM against slow scalar loops: mask, matching, reconstruction, distances, co-mask, and the smoothed variant."""

import math

import pytest
import torch
from pydantic import ValidationError

from kernels.alignment import reference
from tacaf.interfaces import Pairs
from tacaf.model.cmaam import CmaamConfig, align, person_mask
from tests.model.cases import dot, length, minmax, mix, softmax

HEIGHT, WIDTH_OF_MAP, CHANNELS = 3, 2, 4
PAIRS = Pairs(torch.tensor([0, 1, 3]), torch.tensor([2, 3, 0]), torch.tensor([3, 2, 1]))

VISIBLE = 2  # of the four images


def features(dtype=torch.float64):
    """Not negative, as after ReLU; float64 and contiguous, B x C x H x W."""
    draw = torch.Generator().manual_seed(3)
    return torch.rand(4, CHANNELS, HEIGHT, WIDTH_OF_MAP, generator=draw, dtype=torch.float64).to(dtype)


def _positions(image_CHW):
    """Features of the positions, row by row."""
    return [image_CHW[:, y, x].tolist() for y in range(HEIGHT) for x in range(WIDTH_OF_MAP)]


def _cosine(x, y):
    return dot(x, y) / (max(length(x), 1e-12) * max(length(y), 1e-12))


def _scalar_align(maps, anchor, target, beta, share):
    """One pair (method §4): reconstruction and distance per position, and the co-mask."""
    own, other = _positions(maps[anchor]), _positions(maps[target])
    mask, other_mask = minmax([length(f) for f in own]), minmax([length(f) for f in other])
    similarity = [[_cosine(f, g) for g in other] for f in own]
    smooth = [mix(softmax([beta * _cosine(f, g) for g in own]), similarity) for f in own]
    rebuilt, distance, both = [], [], []
    for p, f in enumerate(own):
        row = [(1 - share) * s + share * t for s, t in zip(similarity[p], smooth[p], strict=True)]
        matching = softmax([beta * s for s in row])
        warp = mix(matching, other)
        rebuilt.append(mix([mask[p], 1 - mask[p]], [warp, f]))
        distance.append(math.dist(f, rebuilt[p]))
        both.append(mask[p] * dot(matching, other_mask))
    return rebuilt, distance, minmax(both)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("beta", [5.0, 50.0])
def test_alignment_against_scalar_loops(beta, share):
    maps = features()
    reconstruction, alignment = align(CmaamConfig(beta=beta, self_similarity=share), maps, PAIRS, VISIBLE)
    tolerance = {"rtol": 1e-8, "atol": 1e-6}
    assert reconstruction.shape == (3, CHANNELS, HEIGHT, WIDTH_OF_MAP)
    for pair, (anchor, positive, negative) in enumerate(zip(*(rows.tolist() for rows in PAIRS), strict=True)):
        rebuilt, near, comask = _scalar_align(maps.double(), anchor, positive, beta, share)
        _, far, _ = _scalar_align(maps.double(), anchor, negative, beta, share)
        found = (
            torch.tensor(_positions(reconstruction[pair])),
            alignment.positive_distance_NL[pair],
            alignment.negative_distance_NL[pair],
            alignment.comask_NL[pair],
        )
        for got, expected in zip(found, (rebuilt, near, far, comask), strict=True):
            torch.testing.assert_close(got.double(), torch.tensor(expected, dtype=torch.float64), **tolerance)


def test_an_image_of_constant_norm_has_no_foreground_and_stays_as_it_is():
    maps = features()
    maps[0] = maps[0, :, :1, :1]
    reconstruction, alignment = align(CmaamConfig(), maps, PAIRS, VISIBLE)
    torch.testing.assert_close(reconstruction[0], maps[0])
    for values_NL in alignment:
        assert not values_NL[0].any()


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_gradients_are_finite_where_mask_or_gap_is_zero_and_the_comask_carries_none(share):
    maps = features(torch.float32)
    maps[2] = maps[0]  # the positive of 0 is its copy: warp = feature where the matching is sharp
    maps[1] = maps[1, :, :1, :1]  # no foreground
    maps.requires_grad_()
    reconstruction, alignment = align(CmaamConfig(beta=5000.0, self_similarity=share), maps, PAIRS, VISIBLE)
    assert not alignment.comask_NL.requires_grad
    (reconstruction.sum() + alignment.positive_distance_NL.sum() - alignment.negative_distance_NL.sum()).backward()
    assert torch.isfinite(maps.grad).all()
    assert maps.grad[3].abs().sum() > 0


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_no_gradient_flows_through_the_mask(share):
    """With a matching that ignores the features (beta near 0) the anchor's part is 1 - m, and m counts as a number."""
    maps = features(torch.float32).requires_grad_()
    only = Pairs(torch.tensor([0]), torch.tensor([2]), torch.tensor([2]))
    reconstruction, _ = align(CmaamConfig(beta=1e-7, self_similarity=share), maps, only, VISIBLE)
    (grad,) = torch.autograd.grad(reconstruction.sum(), maps)
    mask = minmax([length(f) for f in _positions(maps[0])])
    expected = torch.tensor([1 - m for m in mask]).view(HEIGHT, WIDTH_OF_MAP).expand(CHANNELS, -1, -1)
    torch.testing.assert_close(grad[0], expected, rtol=1e-4, atol=1e-4)


def test_the_deviation_mask_against_scalar_loops():
    """The norm of what an image has beyond the mean of its modality at that place, min-max over the places."""
    maps = features()
    rows = maps.flatten(2).mT.requires_grad_()
    found = person_mask(rows, VISIBLE, "deviation")
    assert not found.requires_grad
    for image in range(4):
        own = range(VISIBLE) if image < VISIBLE else range(VISIBLE, 4)
        beyond = [
            [f[c] - sum(_positions(maps[other])[place][c] for other in own) / len(own) for c in range(CHANNELS)]
            for place, f in enumerate(_positions(maps[image]))
        ]
        expected = torch.tensor(minmax([length(f) for f in beyond]), dtype=torch.float64)
        torch.testing.assert_close(found[image], expected, rtol=1e-9, atol=1e-9)
    assert person_mask(rows.half(), VISIBLE, "deviation").dtype == torch.float32


def test_what_every_image_has_at_a_place_is_in_the_norm_mask_and_not_in_the_deviation_mask():
    rows = features().flatten(2).mT.clone()
    rows[:, 4] += 100  # the border's answer to the padding
    assert (person_mask(rows, VISIBLE, "norm").argmax(dim=1) == 4).all()
    torch.testing.assert_close(
        person_mask(rows, VISIBLE, "deviation"), person_mask(features().flatten(2).mT, VISIBLE, "deviation")
    )


def test_the_mask_of_the_config_is_the_one_that_aligns():
    maps = features()
    norm, deviation = (align(CmaamConfig(mask=kind), maps, PAIRS, VISIBLE)[1] for kind in ("norm", "deviation"))
    assert not torch.allclose(norm.comask_NL, deviation.comask_NL)
    mask = person_mask(maps.flatten(2).mT, VISIBLE, "deviation")
    gone = mask[PAIRS.anchor_N] < 1e-12  # no person, no distance
    assert gone.any()
    assert not deviation.positive_distance_NL[gone].any()


def test_files_that_name_the_only_matching_load_and_the_removed_one_is_refused():
    assert CmaamConfig.model_validate({"matching": "features", "beta": 9.0}) == CmaamConfig(beta=9.0)
    with pytest.raises(ValidationError, match=r"matching: .*deviations"):
        CmaamConfig.model_validate({"matching": "deviations"})


def test_self_similarity_has_the_definitions_gradient():
    maps = features().requires_grad_()
    config = CmaamConfig(beta=5.0, self_similarity=0.4)

    def outputs(maps_BCHW: torch.Tensor) -> tuple[torch.Tensor, ...]:
        reconstruction, alignment = align(config, maps_BCHW, PAIRS, VISIBLE)
        return reconstruction, alignment.positive_distance_NL, alignment.negative_distance_NL

    mask = person_mask(maps.flatten(2).mT, VISIBLE, "norm")
    found = torch.autograd.grad(sum(value.sum() for value in outputs(maps)), maps)[0]

    def with_fixed_mask(maps_BCHW: torch.Tensor) -> torch.Tensor:
        inputs = (maps_BCHW.flatten(2).mT, mask, *PAIRS, config.beta, config.self_similarity)
        return sum(value.sum() for value in reference.align(*inputs)[:3])

    assert torch.autograd.gradcheck(with_fixed_mask, maps)
    torch.testing.assert_close(found, torch.autograd.grad(with_fixed_mask(maps), maps)[0])
