"""Backbones of transformers with a few channels and random weights: they do all that the ResNet does, or refuse."""

import builtins

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageClassification

from tacaf.losses.total import LossConfig, TacafLoss
from tacaf.model.adapters import build_backbone, map_size
from tacaf.model.library import LibraryConfig, check_weights, portable
from tacaf.model.tacafnet import ModelConfig, TacafNet
from tacaf.model.weights import inference_model, load_imagenet_resnet
from tacaf.vocabulary import InputError, Modality
from tests.model.cases import assert_every_gradient, pairs_of, tiny_batch, tiny_model, train_forward
from tests.model.library_cases import KINDS, REENTERING, STAGES, config_of, of

pytestmark = pytest.mark.slow  # models of transformers


def batch_of(name):
    batch = tiny_batch()
    images = torch.nn.functional.interpolate(batch.images_BCHW, size=(KINDS[name][1], 64))
    return batch._replace(images_BCHW=images)


@pytest.mark.parametrize("name", KINDS)
def test_a_training_pass_reaches_every_parameter(name):
    torch.manual_seed(0)
    model, batch = TacafNet(config_of(name), 5), batch_of(name)
    total, terms = TacafLoss(LossConfig())(train_forward(model, batch), batch.label_B)
    assert ("consistency" in terms) == (name in REENTERING)
    total.backward()
    assert_every_gradient(model)


@pytest.mark.parametrize("name", KINDS)
def test_maps_are_as_large_as_the_configuration_says(name):
    _, height, size = KINDS[name]
    config = config_of(name)
    assert map_size(config.backbone, height, 64) == size
    model, images = TacafNet(config, 5), batch_of(name).images_BCHW[:3]
    layer3_BCHW, layer4_BCHW = model.backbone(images, 1)
    assert layer4_BCHW.shape == (3, model.width, *size)
    if name.startswith("dinov2"):
        assert layer3_BCHW.shape == layer4_BCHW.shape


@pytest.mark.parametrize("name", KINDS)
def test_check_input_proposes_a_height_that_works(name):
    config, (_, height, _) = config_of(name), KINDS[name]
    config.check_input(height, 64)
    with pytest.raises(InputError, match="use height") as error:
        config.check_input(height - 32, 64)
    config.check_input(int(str(error.value).split("use height ")[1].split(",")[0]), 64)


@pytest.mark.parametrize("name", KINDS)
def test_each_modality_has_its_stem_and_the_rest_is_shared(name):
    torch.manual_seed(0)
    model, images = TacafNet(config_of(name), 5).eval(), batch_of(name).images_BCHW[:2]
    with torch.inference_mode():
        both = [model.embed(images, modality) for modality in Modality]
        assert torch.equal(*both), "the stems begin as copies"
        stem = model.backbone.get_submodule(
            next(where for where, _ in model.backbone.named_modules() if where.endswith("infrared"))
        )
        for parameter in stem.parameters():
            parameter.add_(torch.randn_like(parameter))
        assert torch.equal(both[0], model.embed(images, Modality.VISIBLE))
        assert not torch.allclose(both[1], model.embed(images, Modality.INFRARED), atol=1e-3)
        assert both[0].shape == (2, model.embedding_width()) == (2, model.width + 80)


@pytest.mark.parametrize("name", ["convnext", "convnextv2"])
def test_a_rebuilt_image_that_is_the_image_scores_as_the_image(name):
    """A pair of an image with itself and a sharp matching: layer 3 re-enters exactly what follows it."""
    torch.manual_seed(0)
    model, batch = TacafNet(config_of(name, cmaam={"beta": 1e6}), 5), batch_of(name)
    rows = torch.arange(len(batch.label_B))
    itself = pairs_of(batch)._replace(anchor_N=rows, positive_N=rows, negative_N=rows)
    output = model(batch.images_BCHW, batch.label_B, batch.visible, itself, itself)
    for scores in zip(*output.consistency_scores, strict=True):
        torch.testing.assert_close(scores, tuple(output.scores), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["dinov2", "dinov2_with_registers"])
def test_a_token_map_goes_on_through_the_remaining_blocks_as_a_grid(name):
    torch.manual_seed(0)
    backbone = build_backbone(LibraryConfig.model_validate(of(name, split=1)), "local").eval()
    with torch.inference_mode():
        layer3_BCHW, layer4_BCHW = backbone(batch_of(name).images_BCHW[:2], 2)
        again_BCHW = backbone.layer4(layer3_BCHW)
        tokens = layer3_BCHW.flatten(2).mT
        expected = backbone.norm(backbone.blocks[1](tokens)).mT.unflatten(2, layer4_BCHW.shape[2:])
    torch.testing.assert_close(again_BCHW, expected)
    assert not torch.equal(again_BCHW, layer4_BCHW), "the image's own pass has a class token beside the grid"


@pytest.mark.parametrize("name", ["swin", "swinv2"])
def test_consistency_on_layer_3_is_refused_where_the_network_cannot_go_on_from_a_map(name):
    with pytest.raises(ValidationError, match=r"cmaam\.consistency"):
        config_of(name, cmaam={})
    for cmaam in ({"layers": [4]}, {"consistency": False}, {"enabled": False}):
        config_of(name, cmaam=cmaam)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"options": {"depth": [1]}}, r"convnextv2 has no 'depth'; possible: .*depths"),
        ({"options": {"drop_path_rate": 0.1}}, "a resumed run could not repeat dropout, got 0.1"),
        ({"options": {"depths": "deep"}}, "convnextv2 refuses them"),
        ({"weights": "no/such-model"}, "got 'no/such-model'"),
    ],
)
def test_wrong_values_are_one_clear_error(change, says):
    config = LibraryConfig.model_validate(of("convnextv2", **change))
    with pytest.raises(InputError, match=says):
        map_size(config, 192, 64)


def test_an_unknown_name_or_kind_is_refused():
    for backbone, says in (
        ({"kind": "transformers", "name": "bert"}, "convnext"),
        ({"kind": "timm"}, "resnet, efficientnet_lite or tr"),
    ):
        with pytest.raises(ValidationError, match=says):
            ModelConfig.model_validate({"backbone": backbone})


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch):
    real = builtins.__import__

    def absent(name, *rest):
        if name == "transformers":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(InputError, match=r"transformers.*\[backbones\]"):
        config_of("dinov2").check_input(96, 64)


@pytest.fixture
def folder(tmp_path):
    """A classification model as people publish them."""
    torch.manual_seed(7)
    model = AutoModelForImageClassification.from_config(AutoConfig.for_model("convnextv2", **STAGES))
    model.save_pretrained(tmp_path / "published")
    return tmp_path / "published"


def test_weights_come_from_a_folder_into_both_stems(folder):
    config = LibraryConfig(kind="transformers", name="convnextv2", weights=str(folder))
    backbone = build_backbone(config, "local")
    said = backbone.load_weights()
    state = load_file(folder / "model.safetensors")
    for stem in (backbone.stems.visible, backbone.stems.infrared):
        for name, tensor in stem.state_dict().items():
            assert torch.equal(tensor, state[f"convnextv2.embeddings.{name}"])
    for name, tensor in backbone.stages.state_dict().items():
        assert torch.equal(tensor, state[f"convnextv2.encoder.stages.{name}"])
    assert "newly initialised: hidden_states_norms.stage4" in said
    assert f"loaded {len(state) - 4} tensors" in said  # neither the classifier nor the norm before it


def test_weights_that_do_not_fit_are_refused(folder):
    config = LibraryConfig(kind="transformers", name="convnextv2", weights=str(folder))
    with pytest.raises(InputError, match=r"model\.backbone\.name"):
        build_backbone(config.model_copy(update={"name": "convnext"}), "local")
    state = load_file(folder / "model.safetensors")
    del state["convnextv2.encoder.stages.2.layers.0.dwconv.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"1 .*encoder\.stages\.2\.layers\.0\.dwconv\.weight"):
        build_backbone(config, "local").load_weights()
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.backbone\.weights.*config\.json"):
        build_backbone(config, "local").load_weights()


def test_weights_are_looked_for_without_loading_them(folder, tmp_path, monkeypatch):
    config = LibraryConfig(kind="transformers", name="convnextv2", weights=str(folder))
    check_weights(config)
    (folder / "model.safetensors").rename(folder / "model.safetensors.index.json")  # large models have several parts
    check_weights(config)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(InputError, match=r"model\.backbone\.weights.*model\.safetensors"):
        check_weights(config)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    named = config.model_copy(update={"weights": "someone/some-model"})
    with pytest.raises(InputError, match="someone/some-model"):
        check_weights(named)
    check_weights(named.model_copy(update={"download": True}))
    cached = tmp_path / "models--someone--some-model"
    (cached / "snapshots" / "0a").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0a")
    (cached / "snapshots" / "0a" / "model.safetensors").write_bytes(b"weights")
    check_weights(named)


def test_the_card_of_a_model_needs_no_folder(folder):
    config = LibraryConfig(kind="transformers", name="convnextv2", weights=str(folder), options={"hidden_act": "relu"})
    alone = LibraryConfig.model_validate_json(portable(config).model_dump_json())
    assert (alone.weights, alone.options["hidden_sizes"], alone.options["hidden_act"]) == (None, [8, 8, 16, 24], "relu")
    expected = build_backbone(config, "local").state_dict()
    assert {name: tensor.shape for name, tensor in build_backbone(alone, "local").state_dict().items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }


@pytest.mark.parametrize("name", KINDS)
def test_a_saved_model_embeds_as_before(name):
    model, images = TacafNet(config_of(name), 5).eval(), batch_of(name).images_BCHW[:2]
    again = inference_model(config_of(name).portable(), model.state_dict())
    with torch.inference_mode():
        assert torch.equal(model.embed(images, Modality.VISIBLE), again.embed(images, Modality.VISIBLE))


def test_an_imagenet_resnet_goes_into_the_resnet_alone(tmp_path):
    torch.save(tiny_model().backbone.state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(InputError, match=r"model\.backbone\.weights"):
        load_imagenet_resnet(TacafNet(config_of("dinov2"), 5), tmp_path / "resnet.pth")
