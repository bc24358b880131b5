"""The dense triplet against scalar loops: every anchor's hinge under its own co-mask."""

import pytest
import torch
import torch.nn.functional as F

from tacaf.interfaces import Alignment
from tacaf.losses import dense_triplet
from tacaf.losses.dense_triplet import dense_triplet_loss


def alignment(dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    return Alignment(*(torch.rand(3, 5, generator=draw).to(dtype) for _ in range(3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("margin", [0.0, 0.3, 2.0])
def test_dense_triplet_against_scalar_loops(margin, dtype):
    case, terms = alignment(dtype), []
    for near_L, far_L, comask_L in zip(*(x.tolist() for x in case), strict=True):
        for near, far, comask in zip(near_L, far_L, comask_L, strict=True):
            terms.append(comask * max(0.0, near - far + margin))
    loss = dense_triplet_loss(case, margin)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(sum(terms) / 15, rel=1e-5)


def test_the_margin_is_lbas():
    assert dense_triplet_loss(alignment()) == dense_triplet_loss(alignment(), 0.3)


def test_an_anchor_without_a_common_foreground_adds_nothing():
    """LbA's public code multiplies by the other images' masks as well; then this would not be zero."""
    case = alignment()
    case.comask_NL[0] = 0
    near_NL = case.positive_distance_NL.requires_grad_()
    dense_triplet_loss(case, 2.0).backward()
    assert not near_NL.grad[0].any()
    torch.testing.assert_close(near_NL.grad[1:], case.comask_NL[1:] / 15)


def scaled(case, factor):
    """The alignment of features `factor` times as large: their distances are, the co-mask is not."""
    return Alignment(factor * case.positive_distance_NL, factor * case.negative_distance_NL, case.comask_NL)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("unit", ["margin", "distance"])
def test_units_against_scalar_loops(unit, dtype):
    near_NL, far_NL, comask_NL = (x.tolist() for x in scaled(alignment(dtype), 4))
    distances = [d for distance_NL in (near_NL, far_NL) for distance_L in distance_NL for d in distance_L]
    mean, terms = sum(distances) / len(distances), []
    for near_L, far_L, comask_L in zip(near_NL, far_NL, comask_NL, strict=True):
        for near, far, comask in zip(near_L, far_L, comask_L, strict=True):
            hinge = near - far + 0.3 * mean if unit == "margin" else (near - far) / mean + 0.3
            terms.append(comask * max(0.0, hinge))
    loss = dense_triplet_loss(scaled(alignment(dtype), 4), 0.3, unit)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(sum(terms) / 15, rel=1e-5)


@pytest.mark.parametrize("factor", [1e-2, 7.0, 1e4])
def test_with_distance_the_scale_changes_nothing_and_with_margin_the_loss_alone(factor):
    case = alignment()
    for unit, grows in (("distance", 1), ("margin", factor)):
        loss, own = dense_triplet_loss(scaled(case, factor), 0.3, unit), dense_triplet_loss(case, 0.3, unit)
        assert loss.item() == pytest.approx(grows * own.item(), rel=1e-4)
    assert dense_triplet_loss(scaled(case, factor)).item() != pytest.approx(dense_triplet_loss(case).item(), rel=0.01)


def test_absolute_is_the_default_and_lbas_formula_to_the_bit():
    case = alignment()
    expected = (case.comask_NL * F.relu(case.positive_distance_NL - case.negative_distance_NL + 0.3)).mean()
    assert torch.equal(dense_triplet_loss(case), expected)
    assert torch.equal(dense_triplet_loss(case, 0.3, "absolute"), expected)


@pytest.mark.parametrize("unit", ["margin", "distance"])
def test_the_unit_has_no_gradient_of_its_own(unit):
    """Else a loss could fall by growing all distances instead of telling people apart."""
    case = alignment()
    mean = torch.cat([case.positive_distance_NL, case.negative_distance_NL]).mean().item()
    near_NL = case.positive_distance_NL.requires_grad_()
    dense_triplet_loss(case, 2.0, unit).backward()  # a margin that every position violates
    torch.testing.assert_close(near_NL.grad, case.comask_NL / 15 / (mean if unit == "distance" else 1))


def test_the_unit_is_the_mean_over_all_ranks(monkeypatch):
    case, elsewhere = alignment(), 5.0
    own = torch.cat([case.positive_distance_NL, case.negative_distance_NL]).mean()
    monkeypatch.setattr(dense_triplet, "sum_over_ranks", lambda mean: mean + elsewhere)
    monkeypatch.setattr(dense_triplet, "world_size", lambda: 2)
    expected = dense_triplet_loss(case, 0.3 * (own.item() + elsewhere) / 2)
    torch.testing.assert_close(dense_triplet_loss(case, 0.3, "margin"), expected)


def test_features_that_are_all_equal_give_a_finite_loss():
    case = Alignment(torch.zeros(3, 5), torch.zeros(3, 5), torch.ones(3, 5))
    assert dense_triplet_loss(case, 0.3, "distance").item() == pytest.approx(0.3)
    assert dense_triplet_loss(case, 0.3, "margin").item() == 0
