"""The whole model in training: what is built, what gets a gradient, and what a forward hands to the losses."""

import pytest
import torch

from tacaf.losses.total import LossConfig, TacafLoss
from tacaf.model.tacafnet import ModelConfig, TacafNet
from tacaf.vocabulary import Branch, InputError
from tests.model.cases import assert_every_gradient, pairs_of, tiny_batch, tiny_config, tiny_model, train_forward
from tests.tolerances import assert_same_gradients

OFF = {"enabled": False}
SWITCHES = {
    "default": {},
    "cmaam off": {"cmaam": OFF},
    "ipcam off": {"ipcam": OFF},
    "both off": {"cmaam": OFF, "ipcam": OFF},
    "layer 3 only": {"cmaam": {"layers": (3,)}},
    "layer 4 only": {"cmaam": {"layers": (4,)}},
    "no consistency": {"cmaam": {"consistency": False}},
    "self-similarity": {"cmaam": {"self_similarity": 0.3}},
    "visible_to_infrared": {"cmaam": {"direction": "visible_to_infrared"}},
    "pair stage off": {"ipcam": {"pair_stage": False}},
    "pair stage alone": {"cmaam": OFF | {"direction": "visible_to_infrared"}},
    "ring off": {"ipcam": {"ring": False}},
    "self-connection off": {"ipcam": {"self_connection": False}},
    "shared node classifier": {"ipcam": {"classifiers": "shared"}},
    "global node classified": {"ipcam": {"classifiers": "global"}},
    "classifiers in pieces": {"chunk": 2},
    "shared, in pieces": {"chunk": 2, "ipcam": {"classifiers": "shared"}},
    "levels 1, 2, 6": {"ipcam": {"levels": (1, 2, 6)}},
    "basic blocks": {"backbone": {"block": "basic"}},
}


@pytest.mark.parametrize("augmented", [True, False], ids=["V0 V1 I", "V0 I"])
@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_every_parameter_gets_a_gradient(switches, augmented):
    model, batch = tiny_model(**switches), tiny_batch(augmented=augmented)
    total, _ = TacafLoss(LossConfig())(train_forward(model, batch), batch.label_B)
    total.backward()
    learning = [*model.backbone_parameters(), *model.new_parameters()]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert sum(parameter is other for other in learning) == 1, f"{name} is in no optimizer group, or in two"
        else:
            assert name in ("head.neck.bias", "node_head.neck.bias")
    assert_every_gradient(model)


def test_running_layer_4_again_in_backward_changes_nothing():
    """Losses, gradients and running statistics; and less is kept meanwhile."""
    found = []
    for recompute in (False, True):
        model, batch, kept = tiny_model(cmaam={"recompute": recompute}), tiny_batch(), {}

        def keep(tensor: torch.Tensor, kept: dict = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            total, _ = TacafLoss(LossConfig())(train_forward(model, batch), batch.label_B)
        total.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append((total.detach(), gradients, model.state_dict(), sum(kept.values())))
    (total, gradients, state, kept), (again, gradients_again, state_again, kept_again) = found
    assert torch.equal(total, again)
    assert_same_gradients(gradients, gradients_again, share=1e-5)
    for name, value in state.items():
        assert torch.equal(value, state_again[name]), name
    assert kept_again < kept


def test_only_what_is_used_is_built():
    def names(**switches):
        return set(tiny_model(**switches).state_dict())

    everything = names()
    assert names(cmaam=OFF) == everything  # no parameter, no buffer
    assert everything - names(ipcam={"pair_stage": False}) == {n for n in everything if n.startswith("pair_stage.")}
    assert {name.split(".")[0] for name in names(ipcam=OFF)} == {"backbone", "head"}
    assert {name.split(".")[0] for name in everything} == {"backbone", "head", "ipcam", "node_head", "pair_stage"}


@pytest.mark.parametrize(
    ("switches", "layers"),
    [
        ("default", (3, 4)),
        ("layer 3 only", (3, 4)),
        ("pair stage alone", (4,)),
        ("pair stage off", (3, 4)),
        ("ipcam off", (3, 4)),
        ("both off", ()),
    ],
)
def test_the_layer_4_pairs_are_drawn_whenever_cmaam_or_the_pair_stage_wants_them(switches, layers):
    assert tiny_config(**SWITCHES[switches]).pair_layers == layers


def test_layer_3_alone_draws_no_layer_4_pairs():
    assert tiny_config(cmaam={"layers": (3,)}, ipcam={"pair_stage": False}).pair_layers == (3,)


def test_what_a_forward_hands_to_the_losses():
    model, batch = tiny_model(), tiny_batch()
    output = train_forward(model, batch)
    rows, visible = len(batch.label_B), batch.visible
    assert output.pooled_BC.shape == (rows, model.width)
    assert {x.shape for x in output.scores} == {(rows,)}
    assert [x.own_B.shape for x in output.consistency_scores] == [(rows,)] * 2
    for alignment in output.alignments:
        assert {x.shape for x in alignment} == {(rows, 12)}
    assert [x.own_B.shape for x in output.node_scores] == [(rows,)] * 10
    assert [x.own_B.shape for x in output.pair_scores] == [(visible,)] * 2


def test_the_baseline_hands_over_the_head_alone():
    output = train_forward(tiny_model(cmaam=OFF, ipcam=OFF), tiny_batch())
    assert output[2:] == ((), (), (), ())


def test_the_pair_stage_sees_visible_anchors_and_their_infrared_positives(monkeypatch):
    model, batch, seen = tiny_model(), tiny_batch(), []
    monkeypatch.setattr(model.pair_stage, "forward", lambda *given: seen.append(given) or ())
    train_forward(model, batch)
    ((fine_BRD, visible_P, infrared_P, label_P, used),) = seen
    pairs = pairs_of(batch, 4)
    assert fine_BRD.shape[1] == 6
    assert torch.equal(infrared_P, pairs.positive_N[visible_P])
    assert (batch.branch_B[visible_P] != Branch.INFRARED).all()
    assert (batch.branch_B[infrared_P] == Branch.INFRARED).all()
    assert torch.equal(batch.label_B[visible_P], label_P)
    assert torch.equal(batch.label_B[infrared_P], label_P)
    assert used is None, "all identities"


def test_each_layer_is_aligned_by_its_own_pairs():
    model, batch = tiny_model(), tiny_batch()
    pairs3, pairs4 = pairs_of(batch, 3), pairs_of(batch, 4)
    other = pairs3._replace(positive_N=pairs3.negative_N, negative_N=pairs3.positive_N)
    layer3, layer4 = model(batch.images_BCHW, batch.label_B, batch.visible, pairs3, pairs4).alignments
    changed3, same4 = model(batch.images_BCHW, batch.label_B, batch.visible, other, pairs4).alignments
    assert all(torch.equal(a, b) for a, b in zip(layer4, same4, strict=True))
    assert not torch.allclose(layer3.positive_distance_NL, changed3.positive_distance_NL)
    torch.testing.assert_close(layer3.positive_distance_NL, changed3.negative_distance_NL, rtol=1e-3, atol=1e-3)


def test_consistency_classifies_the_reconstructions_with_the_same_layers():
    """A pair of an image with itself and a sharp matching rebuilds the image: the scores are the plain ones."""
    model, batch = tiny_model(cmaam={"beta": 1e6}, ipcam=OFF), tiny_batch()
    rows = torch.arange(len(batch.label_B))
    itself = pairs_of(batch)._replace(anchor_N=rows, positive_N=rows, negative_N=rows)
    output = model(batch.images_BCHW, batch.label_B, batch.visible, itself, itself)
    for scores in output.consistency_scores:
        torch.testing.assert_close(scores, output.scores, rtol=1e-4, atol=1e-5)


def test_the_extra_passes_leave_running_statistics_alone():
    batch, found = tiny_batch(), []
    for switches in ({}, {"cmaam": OFF}):
        model = tiny_model(**switches)
        train_forward(model, batch)
        found.append(dict(model.named_buffers()))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert int(found[0]["head.neck.num_batches_tracked"]) == 1
    assert int(found[0]["backbone.layer4.0.bn1.num_batches_tracked"]) == 1


@pytest.mark.parametrize("switches", ["default", "layer 3 only", "pair stage alone"])
def test_missing_pairs_are_a_programming_error(switches):
    model, batch = tiny_model(**SWITCHES[switches]), tiny_batch()
    with pytest.raises(AssertionError, match=r"layer [34]\b"):
        model(batch.images_BCHW, batch.label_B, batch.visible)


@pytest.mark.parametrize(("height", "fits"), [(288, True), (96, True), (90, True), (112, False), (256, False)])
def test_the_layer_4_map_must_divide_into_the_levels(height, fits):
    if fits:
        tiny_config().check_input(height, 32)
    else:
        with pytest.raises(InputError, match=rf"height {height} .*{height // 16} rows.*use height"):
            tiny_config().check_input(height, 32)
    tiny_config(ipcam=OFF).check_input(height, 32)


def test_the_height_the_error_proposes_is_one_that_works():
    config = tiny_config(backbone={"last_stride": 2})
    with pytest.raises(InputError, match=r"height 192, .*model\.ipcam\.levels"):
        config.check_input(224, 112)
    config.check_input(192, 112)


def test_the_default_model_has_the_methods_widths():
    with torch.device("meta"):
        model = TacafNet(ModelConfig(), 395)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes["head.classifier.0.weight"] == (395, 2048)
    assert shapes["ipcam.embed.0.weight"] == (512, 2048)
    assert shapes["ipcam.theta.weight"] == shapes["ipcam.phi.weight"] == (128, 512)
    assert shapes["ipcam.graph_weight.weight"] == shapes["pair_stage.cross_weight.weight"] == (512, 512)
    assert shapes["pair_stage.compress.weight"] == (256, 512)
    assert shapes["node_head.classifier.0.weight"] == (10, 395, 512)
    assert not any("classifier.1" in name for name in shapes), "today's sets are one piece"
