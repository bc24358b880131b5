"""The descriptor of an image at test time: its width, its blocks, and what it must not depend on."""

import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from tacaf.model.tacafnet import ModelConfig, TacafNet
from tacaf.vocabulary import Embedding, Modality
from tests.model.cases import randomise_norms, tiny_model

OFF = {"enabled": False}
IMAGES = torch.randn(4, 3, 96, 32, generator=torch.Generator().manual_seed(2))


def trained(**switches):
    """An evaluation-mode model whose running statistics are not the initial ones."""
    model = tiny_model(**switches)
    randomise_norms(model)
    return model.eval()


def embed(model, modality=Modality.VISIBLE, embedding="full", images=IMAGES):
    with torch.inference_mode():
        return model.embed(images, modality, embedding)


@pytest.mark.parametrize(("switches", "full"), [({}, 7168), ({"ipcam": {"enabled": False}}, 2048)], ids=str)
def test_the_default_models_widths(switches, full):
    with torch.device("meta"):
        model = TacafNet(ModelConfig.model_validate(switches), 395)
    assert (model.embedding_width(), model.embedding_width("global_only")) == (full, 2048)
    assert model.embedding_width("global_and_parts") == max(2048, full - 512)


def test_the_width_is_the_sum_of_the_blocks_and_each_block_has_length_one():
    model = trained()
    found = embed(model)
    assert found.dtype == torch.float32
    assert found.shape == (4, model.embedding_width()) == (4, 128 + 8 + 9 * 8)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))
    for block in found.split([128, 8, 72], dim=1):
        torch.testing.assert_close(block.norm(dim=1), torch.full((4,), 1 / math.sqrt(3)))


@pytest.mark.parametrize("modality", list(Modality))
def test_the_blocks_are_necked_gem_global_node_and_the_other_nodes(modality):
    model = trained()
    with torch.no_grad():
        map_BCHW = model.backbone(IMAGES, 4 if modality is Modality.VISIBLE else 0)[1]
        cubes = map_BCHW.clamp_min(1e-6).pow(3)
        stripes = [cubes.unflatten(2, (level, -1)).mean(dim=(3, 4)).mT for level in (1, 3, 6)]
        pooled_BNC = torch.cat(stripes, 1).pow(1 / 3)
        nodes_BND = model.ipcam(pooled_BNC.split((1, 3, 6), dim=1))
        neck = model.head.neck
        necked = (pooled_BNC[:, 0] - neck.running_mean) / (neck.running_var + neck.eps).sqrt() * neck.weight + neck.bias
    blocks = [necked, nodes_BND[:, 0], nodes_BND[:, 1:].flatten(1)]
    expected = torch.cat([F.normalize(block) for block in blocks], dim=1) / math.sqrt(3)
    torch.testing.assert_close(embed(model, modality), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embed(model, modality, "global_only"), F.normalize(necked), rtol=1e-4, atol=1e-5)
    two = torch.cat([F.normalize(blocks[0]), F.normalize(blocks[2])], dim=1) / math.sqrt(2)
    torch.testing.assert_close(embed(model, modality, "global_and_parts"), two, rtol=1e-4, atol=1e-5)
    assert two.shape[1] == model.embedding_width("global_and_parts")


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_the_part_weight_scales_everything_but_the_global_feature(weight):
    plain, weighted = trained(), trained(ipcam={"part_weight": weight})
    weighted.load_state_dict(plain.state_dict())
    scales = torch.ones(plain.embedding_width()) * weight
    scales[:128] = 1
    torch.testing.assert_close(embed(weighted), F.normalize(embed(plain) * scales), rtol=1e-5, atol=1e-6)
    own, parts = embed(weighted, embedding="global_and_parts").split([128, 72], dim=1)
    torch.testing.assert_close(parts.norm(dim=1) / own.norm(dim=1), torch.full((4,), weight))
    assert torch.equal(embed(weighted, embedding="global_only"), embed(plain, embedding="global_only"))


def test_without_ipcam_every_embedding_is_the_global_one():
    model = trained(ipcam=OFF)
    assert model.embedding_width() == model.embedding_width("global_only") == 128
    for other in ("global_only", "global_and_parts"):
        assert torch.equal(embed(model), embed(model, embedding=other))


@pytest.mark.parametrize("switches", [{"cmaam": OFF}, {"ipcam": {"pair_stage": False}}], ids=str)
def test_what_only_training_needs_changes_nothing(switches):
    full, reduced = trained(), tiny_model(**switches).eval()
    state = full.state_dict()
    reduced.load_state_dict({name: state[name] for name in reduced.state_dict()})
    for modality in Modality:
        assert torch.equal(embed(full, modality), embed(reduced, modality))


def test_the_modality_chooses_the_stem():
    model = trained()
    assert not torch.allclose(embed(model, Modality.VISIBLE), embed(model, Modality.INFRARED), atol=1e-3)


@pytest.mark.parametrize("embedding", get_args(Embedding))
def test_an_images_descriptor_does_not_depend_on_its_batch(embedding):
    model = trained()
    alone = torch.cat([embed(model, embedding=embedding, images=image[None]) for image in IMAGES])
    torch.testing.assert_close(embed(model, embedding=embedding), alone, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)


def test_embedding_leaves_the_model_as_it_is():
    model = trained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    embed(model)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_model_in_training_mode_refuses_to_embed():
    with pytest.raises(AssertionError, match=r"call eval\(\) first"):
        embed(tiny_model())
