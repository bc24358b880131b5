"""Weights from files: what goes where, what is reported, and that a file that does not fit changes nothing."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from tacaf.model.backbone import BackboneConfig
from tacaf.model.tacafnet import ModelConfig, TacafNet
from tacaf.model.weights import load_imagenet_resnet, load_tacafnet
from tacaf.vocabulary import InputError

CONFIG = ModelConfig.model_validate(
    {
        "backbone": {"width": 4, "blocks": [1, 2, 1, 1]},
        "ipcam": {"node_width": 8, "attention_width": 4, "pair_width": 4},
    }
)


def net(identities: int = 5, config: ModelConfig = CONFIG, seed: int = 0) -> TacafNet:
    torch.manual_seed(seed)
    return TacafNet(config, identities)


def resnet(config: BackboneConfig = CONFIG.backbone) -> dict[str, torch.Tensor]:
    """A classification ResNet's tensors under their usual names, every one different from a fresh model's."""
    model = net(config=CONFIG.model_copy(update={"backbone": config}), seed=1)
    found = {}
    for name, tensor in model.backbone.state_dict().items():
        if not name.startswith("infrared_stem."):
            fill = torch.randn_like(tensor) if tensor.is_floating_point() else tensor + 7
            found[name.removeprefix("visible_stem.")] = fill
    return found | {"fc.weight": torch.randn(1000, 128), "fc.bias": torch.randn(1000)}


def as_is(state):
    return state


def wrapped(state):
    return {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}


def without_counters(state):
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    ("suffix", "change"),
    [(".pth", as_is), (".pth", wrapped), (".pth", without_counters), (".safetensors", as_is)],
)
def test_imagenet_weights_fill_both_stems_and_the_stages(tmp_path, change, suffix):
    state, path = resnet(), tmp_path / f"resnet{suffix}"
    if suffix == ".safetensors":
        save_file(change(state), path)
    else:
        torch.save(change(state), path)
    model = net()
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_imagenet_resnet(model, path)
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked") and change is without_counters:
            continue
        if name.startswith("backbone."):
            source = name.removeprefix("backbone.").replace("visible_stem.", "").replace("infrared_stem.", "")
            assert torch.equal(tensor, state[source]), name
        else:
            assert torch.equal(tensor, fresh[name]), name
    assert tuple(sorted(report.ignored, reverse=True)) == ("fc.weight", "fc.bias")
    assert set(report.taken) == set(change(state) if change is without_counters else state) - {"fc.weight", "fc.bias"}
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for said in (path.name, report.sha256[:8], "fc.weight", "head.classifier", f"{len(report.taken)} tensors"):
        assert said in str(report)


def test_a_trained_model_starts_another_with_other_identities(tmp_path):
    trained = net(identities=5, seed=1)
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    model = net(identities=9)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_tacafnet(model, tmp_path / "model.safetensors")
    for name, tensor in model.state_dict().items():
        expected = fresh if "classifier" in name else trained.state_dict()
        assert torch.equal(tensor, expected[name]), name
    assert set(report.initialised) == {f"{room}.classifier.0.weight" for room in ("head", "node_head", "pair_stage")}


def _drop(state, name):
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda state: _drop(state, "layer2.1.conv2.weight"),
            r"1 missing \(first backbone\.layer2\.1\.conv2\.weight\)",
        ),
        (lambda state: _drop(state, "conv1.weight"), r"2 missing \(first backbone\.visible_stem\.conv1\.weight\)"),
        (lambda state: state | {"layer5.weight": torch.zeros(1)}, r"1 unknown \(first layer5\.weight\)"),
        (
            lambda state: state | {"layer1.0.conv1.weight": torch.zeros(8, 4, 1, 1)},
            r"layer1\.0\.conv1\.weight: \[8, 4, 1, 1\], not \[4, 4, 1, 1\]",
        ),
        (lambda _: resnet(BackboneConfig(width=4, blocks=(1, 2, 1, 1), block="basic")), "expected a ResNet of"),
        (lambda _: torch.zeros(3), "expected a state dict"),
        (lambda _: {}, "expected a state dict"),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(tmp_path, change, says):
    torch.save(change(resnet()), tmp_path / "resnet.pth")
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=says):
        load_imagenet_resnet(model, tmp_path / "resnet.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_of_another_shape_is_no_start(tmp_path):
    other = CONFIG.model_copy(update={"ipcam": CONFIG.ipcam.model_copy(update={"enabled": False})})
    save_file(net(config=other).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"missing \(first ipcam\."):
        load_tacafnet(net(), tmp_path / "model.safetensors")


class Bomb:
    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("absent.pth", None, r"absent\.pth does not exist; correct the path"),
        (".", None, "is not a file"),
        ("weights.onnx", b"x", r"\.pth, \.pt, \.bin, \.safetensors, got \.onnx"),
        ("weights", b"x", "got none"),
        ("empty.pth", b"", "an empty file"),
        ("empty.safetensors", b"", "an empty file"),
        ("page.pth", b"\n<!DOCTYPE html><html>", "a web page"),
        ("page.safetensors", b"<HTML>", "a web page"),
        ("pointer.bin", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        ("packed.pth", b"\x1f\x8b\x08\x00", "gzip"),
        ("cut.pth", b"PK\x03\x04 cut", "not a file of torch.save"),
        ("words.pth", b"hello", "not a file of torch.save"),
        ("cut.safetensors", b"\x00" * 4, "not a safetensors file"),
        ("bomb.pth", Bomb(), "needs code to be unpickled"),
        ("numbers.pth", {0: torch.zeros(1)}, "'0', which is Tensor"),
        ("epoch.pth", {"epoch": 3, "weights of it": torch.zeros(1)}, "'epoch', which is int"),
        ("nan.pth", {"conv1.weight": torch.tensor([1.0, float("nan")])}, "NaN or infinity in conv1.weight"),
        ("complex.pth", {"conv1.weight": torch.zeros(1, dtype=torch.complex64)}, "conv1.weight, which is complex"),
    ],
)
def test_an_unusable_file_is_one_clear_error_and_runs_no_code(tmp_path, capsys, name, content, says):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / name)
    for load in (load_imagenet_resnet, load_tacafnet):
        with pytest.raises(InputError, match=says) as raised:
            load(net(), tmp_path / name)
        assert "\n" not in str(raised.value)
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize("words", [("net",), ("model",), ("model_state_dict",), ("model", "state_dict")])
def test_the_usual_wrappings_are_taken_off(tmp_path, words):
    state = resnet()
    for word in reversed(words):
        state = {"epoch": 3, word: state}
    torch.save(state, tmp_path / "resnet.pth")
    model = net()
    load_imagenet_resnet(model, tmp_path / "resnet.pth")
    assert torch.equal(model.state_dict()["backbone.layer1.0.conv1.weight"], resnet()["layer1.0.conv1.weight"])
