"""Triplet losses against scalar loops: ties, coinciding rows, one identity, two ranks."""

import math

import pytest
import torch

from tacaf.losses.triplet import batch_hard, in_mean_distances, pairwise_distance, triplet_loss

KINDS = ("batch_hard", "wrt", "adp")


def _softmax_mean(values, sign):
    weights = [math.exp(sign * value) for value in values]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def _scalar_triplet(rows, labels, margin, kind):
    terms = []
    for row, label in zip(rows, labels, strict=True):
        apart = [math.dist(row, other) for other in rows]
        near = [d for d, other in zip(apart, labels, strict=True) if other == label]  # the anchor itself too
        far = [d for d, other in zip(apart, labels, strict=True) if other != label]
        if kind == "batch_hard":
            terms.append(max(0.0, max(near) - min(far) + margin))
            continue
        gap = _softmax_mean(near, 1) - _softmax_mean(far, -1)
        terms.append(math.log1p(math.exp(gap if kind == "wrt" else gap * abs(gap))))
    return sum(terms) / len(terms)


def case(kind):
    torch.manual_seed(0)
    features, label = torch.randn(8, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    if kind == "far apart":  # well separated identities: the hinge is closed for some anchors
        features += 2.0 * label[:, None]
    elif kind == "ties":  # equal distances to two positives and to two negatives
        features = torch.tensor(
            [[0, 0, 0], [3, 0, 0], [0, 0, 3], [1, 0, 0], [0, 3, 0], [0, 0, -3], [0, 1, 0], [2, 0, 0]]
        )
    elif kind == "coinciding":  # the same row twice, in one identity and across two
        features[3], features[4] = features[0], features[5]
    elif kind == "one image each":
        label = torch.arange(8)
    return features.float(), label


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", ["usual", "far apart", "ties", "coinciding", "one image each"])
@pytest.mark.parametrize("margin", [0.3, 1.5])
def test_against_scalar_loops_with_finite_gradients(rows, kind, margin):
    features, label = case(rows)
    features.requires_grad_()
    loss = triplet_loss(features, label, margin, kind)
    expected = _scalar_triplet(features.tolist(), label.tolist(), margin, kind)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    (grad,) = torch.autograd.grad(loss, features)
    assert torch.isfinite(grad).all()
    assert grad.any() == (expected > 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_one_identity_has_a_finite_loss(kind):
    features = torch.randn(4, 3, requires_grad=True)
    loss = triplet_loss(features, torch.zeros(4, dtype=torch.int64), kind=kind)
    (grad,) = torch.autograd.grad(loss, features)
    assert torch.isfinite(loss)
    assert torch.isfinite(grad).all()
    assert kind != "batch_hard" or loss.item() == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", ["usual", "ties", "coinciding"])
def test_the_unit_distance_is_the_mean_distance_of_the_batch(rows, kind):
    features, label = case(rows)
    rows = features.tolist()
    mean = sum(math.dist(one, other) for one in rows for other in rows) / (8 * 7)
    expected = _scalar_triplet([[value / mean for value in row] for row in rows], label.tolist(), 0.3, kind)
    assert triplet_loss(features, label, 0.3, kind, "distance").item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [1e-2, 30.0, 1e4])
def test_with_the_unit_distance_the_features_scale_has_neither_effect_nor_gradient(kind, factor):
    features, label = case("usual")
    large = (factor * features).requires_grad_()
    loss = triplet_loss(large, label, 0.3, kind, "distance")
    assert loss.item() == pytest.approx(triplet_loss(features, label, 0.3, kind, "distance").item(), rel=1e-4)
    (grad,) = torch.autograd.grad(loss, large)
    along, size = (grad * large).sum().item(), grad.norm().item() * large.norm().item()
    assert size > 0
    assert abs(along) < 1e-4 * size  # growing or shrinking all features changes nothing


@pytest.mark.parametrize("unit", ["absolute", "distance"])
def test_features_that_all_coincide_leave_the_margin(unit):
    features = torch.ones(4, 3, requires_grad=True)
    loss = triplet_loss(features, torch.tensor([0, 0, 1, 1]), 0.3, unit=unit)
    loss.backward()
    assert loss.item() == pytest.approx(0.3)
    assert not features.grad.any()


def test_the_margin_is_batch_hards_alone():
    features, label = case("usual")
    for kind in ("wrt", "adp"):
        assert triplet_loss(features, label, 0.3, kind) == triplet_loss(features, label, 9.0, kind)


def test_adp_neither_overflows_nor_loses_its_gradient_far_out():
    """CAJ's clamp at 88 would stop the pull just where identities lie worst."""
    features = torch.tensor([[0.0], [30.0], [1.0], [31.0]], requires_grad=True)
    loss = triplet_loss(features, torch.tensor([0, 0, 1, 1]), kind="adp")
    (grad,) = torch.autograd.grad(loss, features)
    assert loss.item() > 400
    assert torch.isfinite(grad).all()
    assert grad.any()


def test_distances_of_close_rows_far_from_the_origin_do_not_cancel():
    rows = torch.tensor([[1000.0, 0.0], [1000.0, 0.01], [1000.0, 3.0]])
    expected = torch.tensor([[math.dist(x, y) for y in rows.tolist()] for x in rows.tolist()])
    torch.testing.assert_close(pairwise_distance(rows), expected, rtol=1e-4, atol=0)


def test_half_precision_features_are_measured_in_float32():
    features, label = case("usual")
    with torch.autocast("cpu", torch.bfloat16):
        loss = triplet_loss(features.bfloat16(), label)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, triplet_loss(features.bfloat16().float(), label))


def test_two_ranks_measure_in_the_mean_distance_of_both(two_ranks):
    features, label = case("usual")
    features.requires_grad_()
    halves, labels = features.split(4), label.split(4)
    losses = two_ranks(lambda rank: triplet_loss(halves[rank], labels[rank], 0.3, unit="distance"))
    (found,) = torch.autograd.grad(sum(losses) / 2, features)
    same_GG = label[:, None] == label[None, :]
    whole = batch_hard(in_mean_distances(pairwise_distance(features)), same_GG, 0.3)
    (expected,) = torch.autograd.grad(whole, features)
    torch.testing.assert_close(losses, [whole, whole])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_mine_the_whole_batch(two_ranks, kind):
    features, label = case("usual")
    features.requires_grad_()
    halves, labels = features.split(4), label.split(4)
    losses = two_ranks(lambda rank: triplet_loss(halves[rank], labels[rank], 0.3, kind))
    (found,) = torch.autograd.grad(sum(losses) / 2, features)
    whole = _scalar_triplet(features.tolist(), label.tolist(), 0.3, kind)
    assert [loss.item() for loss in losses] == pytest.approx([whole, whole], rel=1e-5)
    assert (found.norm(dim=1) > 0).all()
