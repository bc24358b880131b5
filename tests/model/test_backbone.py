"""The two-stem ResNet: the usual names and shapes, the map's size, and who takes which stem."""

import pytest
import torch

from tacaf.model.backbone import Backbone, BackboneConfig

RESNET50_BLOCKS = (3, 4, 6, 3)
NORM_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def tiny(**changes) -> Backbone:
    torch.manual_seed(0)
    return Backbone(BackboneConfig(**({"width": 4, "blocks": (1, 1, 1, 1)} | changes)), "local")


def full_size() -> Backbone:
    with torch.device("meta"):
        return Backbone(BackboneConfig(), "local")


def test_names_are_those_of_the_usual_resnet50_with_two_stems():
    expected = set()
    for stem in ("visible_stem", "infrared_stem"):
        expected |= {f"{stem}.conv1.weight", *(f"{stem}.bn1.{name}" for name in NORM_TENSORS)}
    for stage, blocks in enumerate(RESNET50_BLOCKS, start=1):
        for block in range(blocks):
            prefix = f"layer{stage}.{block}"
            for i in (1, 2, 3):
                expected |= {f"{prefix}.conv{i}.weight", *(f"{prefix}.bn{i}.{name}" for name in NORM_TENSORS)}
        first = f"layer{stage}.0.downsample"
        expected |= {f"{first}.0.weight", *(f"{first}.1.{name}" for name in NORM_TENSORS)}
    assert set(full_size().state_dict()) == expected


def test_shapes_are_those_of_resnet50():
    state = {name: tuple(tensor.shape) for name, tensor in full_size().state_dict().items()}
    assert state["visible_stem.conv1.weight"] == state["infrared_stem.conv1.weight"] == (64, 3, 7, 7)
    assert state["layer1.0.conv1.weight"] == (64, 64, 1, 1)
    assert state["layer2.0.conv2.weight"] == (128, 128, 3, 3)
    assert state["layer3.0.downsample.0.weight"] == (1024, 512, 1, 1)
    assert state["layer4.2.conv3.weight"] == (2048, 512, 1, 1)
    # ResNet-50 has 25,557,032 parameters, 2,049,000 of them in its classifier; the second stem adds 9,408 + 2 * 64.
    count = sum(parameter.numel() for parameter in full_size().parameters())
    assert count == 25_557_032 - 2_049_000 + 9_408 + 128


def test_the_stride_of_a_bottleneck_sits_in_its_3x3():
    for stage, stride in zip((1, 2, 3, 4), (1, 2, 2, 1), strict=True):
        block = full_size().get_submodule(f"layer{stage}.0")
        assert (block.conv1.stride, block.conv2.stride, block.downsample[0].stride) == (
            (1, 1),
            (stride,) * 2,
            (stride,) * 2,
        )


def test_default_maps_are_18_x_9():
    layer3, layer4 = full_size()(torch.empty(2, 3, 288, 144, device="meta"), 1)
    assert layer3.shape == (2, 1024, 18, 9)
    assert layer4.shape == (2, 2048, 18, 9)


@pytest.mark.parametrize("block", ["bottleneck", "basic"])
@pytest.mark.parametrize("last_stride", [1, 2])
@pytest.mark.parametrize("size", [(96, 48), (100, 50), (33, 65)])
def test_map_size_and_stage_width_tell_what_comes_out(size, last_stride, block):
    backbone = tiny(last_stride=last_stride, block=block).eval()
    layer3, layer4 = backbone(torch.randn(2, 3, *size), 1)
    assert layer4.shape[2:] == backbone.config.map_size(*size)
    assert (layer3.shape[1], layer4.shape[1]) == (backbone.config.stage_width(3), backbone.config.stage_width(4))
    assert layer4.shape[1] == 32 * backbone.config.expansion


def test_each_modality_takes_its_own_stem():
    backbone, images = tiny().eval(), torch.randn(5, 3, 32, 32)
    before = backbone(images, 2)[1]
    with torch.no_grad():
        backbone.infrared_stem.conv1.weight.mul_(-1)
    after = backbone(images, 2)[1]
    assert torch.equal(before[:2], after[:2])
    assert not torch.isclose(before[2:], after[2:]).flatten(1).all(1).any()


@pytest.mark.parametrize(("visible", "idle"), [(3, "infrared_stem"), (0, "visible_stem")])
def test_a_batch_of_one_modality_runs_one_stem(visible, idle):
    backbone = tiny()
    backbone(torch.randn(3, 3, 32, 32), visible)
    means = {name: value for name, value in backbone.state_dict().items() if name.endswith("running_mean")}
    assert {name for name, mean_C in means.items() if not mean_C.any()} == {f"{idle}.bn1.running_mean"}


def test_a_block_adds_its_shortcut_before_the_last_relu():
    backbone = tiny(blocks=(2, 1, 1, 1)).eval()
    block, features = backbone.layer1[1], torch.randn(2, 16, 4, 4)
    with torch.no_grad():
        block.bn3.weight.zero_()  # no residual: what is left is the shortcut
    assert block.downsample is None
    torch.testing.assert_close(block(features), features.clamp_min(0))


@pytest.mark.parametrize("block", ["bottleneck", "basic"])
def test_fused_norms_compute_the_same_maps_and_gradients(block):
    usual = tiny(block=block).double()
    fused = Backbone(usual.config, "local", fused=True).double()
    fused.load_state_dict(usual.state_dict())
    images = torch.rand(4, 3, 32, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for model in (usual, fused):
        sum(maps.square().sum() for maps in model(images, 2)).backward()
    torch.testing.assert_close(fused(images, 2), usual(images, 2))
    torch.testing.assert_close(fused.state_dict(), usual.state_dict())
    for (name, found), expected in zip(fused.named_parameters(), usual.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, msg=name)
