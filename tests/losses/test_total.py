"""The whole loss: its terms, their weights, and that a switched-off module leaves no term."""

import pytest
import torch
from pydantic import ValidationError

from tacaf.interfaces import Alignment, ModelOutput, Scores
from tacaf.losses.dense_triplet import dense_triplet_loss
from tacaf.losses.identity import identity_loss
from tacaf.losses.total import LossConfig, TacafLoss
from tacaf.losses.triplet import triplet_loss

LABEL = torch.tensor([0, 1, 2, 0, 1, 2])


def scores(*shape):
    return Scores(-torch.rand(shape), -1 - torch.rand(shape))


def full_output():
    torch.manual_seed(0)
    return ModelOutput(
        pooled_BC=torch.randn(6, 4),
        scores=scores(6),
        consistency_scores=scores(2, 4),
        alignments=tuple(Alignment(*torch.rand(3, 4, 5)) for _ in range(2)),
        node_scores=scores(10, 6),
        pair_scores=scores(2, 3),
    )


def expected_terms(output, smoothing=0.0, margin=0.3, dense_margin=0.3):
    def classify(stacked):
        return [identity_loss(Scores(*each), smoothing) for each in zip(*stacked, strict=True)]

    return {
        "identity": identity_loss(output.scores, smoothing),
        "triplet": triplet_loss(output.pooled_BC, LABEL, margin),
        "consistency": sum(classify(output.consistency_scores)),
        "dense_triplet": sum(dense_triplet_loss(alignment, dense_margin) for alignment in output.alignments),
        "part": sum(classify(output.node_scores)) / 10,
        "pair": sum(classify(output.pair_scores)) / 2,
    }


def test_the_default_weights_are_the_methods():
    """L = CE_id + triplet + 1 (CE_ic3 + CE_ic4) + .5 (DT3 + DT4) + L_part + L_pair (method §6)."""
    output = full_output()
    total, terms = TacafLoss(LossConfig())(output, LABEL)
    expected = expected_terms(output)
    torch.testing.assert_close(terms, expected)
    torch.testing.assert_close(total, sum(expected.values()) - 0.5 * expected["dense_triplet"])


def test_every_weight_margin_and_the_smoothing_count():
    output = full_output()
    config = LossConfig(ic=2, dt=3, part=5, pair=7, margin=1.1, dense_margin=0.9, label_smoothing=0.2)
    total, terms = TacafLoss(config)(output, LABEL)
    expected = expected_terms(output, smoothing=0.2, margin=1.1, dense_margin=0.9)
    torch.testing.assert_close(terms, expected)
    weights = {"consistency": 2, "dense_triplet": 3, "part": 5, "pair": 7}
    torch.testing.assert_close(total, sum(weights.get(name, 1) * term for name, term in expected.items()))


@pytest.mark.parametrize("unit", ["absolute", "margin", "distance"])
def test_the_dense_triplet_takes_its_unit(unit):
    output = full_output()
    _, terms = TacafLoss(LossConfig(dense_unit=unit, dense_margin=0.7))(output, LABEL)
    expected = sum(dense_triplet_loss(alignment, 0.7, unit) for alignment in output.alignments)
    torch.testing.assert_close(terms["dense_triplet"], expected)  # each layer in its own unit
    with pytest.raises(ValidationError, match="dense_unit"):
        LossConfig(dense_unit=f"{unit}s")


@pytest.mark.parametrize("unit", ["absolute", "margin", "distance"])
def test_layers_with_maps_of_different_sizes_are_summed_too(unit):
    output = full_output()._replace(alignments=(Alignment(*torch.rand(3, 4, 5)), Alignment(*torch.rand(3, 4, 2))))
    _, terms = TacafLoss(LossConfig(dense_unit=unit))(output, LABEL)
    expected = sum(dense_triplet_loss(alignment, 0.3, unit) for alignment in output.alignments)
    torch.testing.assert_close(terms["dense_triplet"], expected)


def test_the_triplet_takes_its_unit():
    output = full_output()
    _, terms = TacafLoss(LossConfig(triplet_unit="distance", margin=0.7))(output, LABEL)
    torch.testing.assert_close(terms["triplet"], triplet_loss(output.pooled_BC, LABEL, 0.7, unit="distance"))
    with pytest.raises(ValidationError, match="triplet_unit"):
        LossConfig(triplet_unit="margin")


@pytest.mark.parametrize("kind", ["wrt", "adp"])
def test_the_triplet_can_be_another(kind):
    output = full_output()
    _, terms = TacafLoss(LossConfig(triplet=kind))(output, LABEL)
    torch.testing.assert_close(terms["triplet"], triplet_loss(output.pooled_BC, LABEL, kind=kind))


@pytest.mark.parametrize(
    ("gone", "config", "names"),
    [
        ({"consistency_scores": None}, {}, {"consistency"}),
        ({"alignments": ()}, {}, {"dense_triplet"}),
        ({"node_scores": None}, {}, {"part"}),
        ({"pair_scores": None}, {}, {"pair"}),
        ({}, {"ic": 0}, {"consistency"}),
        ({}, {"dt": 0}, {"dense_triplet"}),
    ],
    ids=str,
)
def test_what_is_switched_off_has_no_term(gone, config, names):
    output = full_output()
    total, terms = TacafLoss(LossConfig(**config))(output._replace(**gone), LABEL)
    kept = {name: term for name, term in expected_terms(output).items() if name not in names}
    torch.testing.assert_close(terms, kept)
    weights = {"dense_triplet": 0.5}
    torch.testing.assert_close(total, sum(weights.get(name, 1) * term for name, term in kept.items()))


def test_the_total_carries_the_gradient_and_the_terms_do_not():
    output = full_output()
    output.pooled_BC.requires_grad_()
    total, terms = TacafLoss(LossConfig())(output, LABEL)
    assert total.requires_grad
    assert not any(term.requires_grad for term in terms.values())


@pytest.mark.parametrize("name", ["part", "pair"])
def test_a_node_or_pair_weight_of_zero_is_refused_since_its_parameters_would_not_learn(name):
    with pytest.raises(ValidationError, match=name):
        LossConfig(**{name: 0})
