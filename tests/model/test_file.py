"""Model files: whole ones load; whatever is damaged, foreign or too large is one error by name."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from perf.attacks.mutations import damaged, retyped
from tacaf.documents import parse
from tacaf.model.file import ModelCard, load_model, write_model
from tacaf.model.tacafnet import ModelConfig, TacafNet
from tacaf.model.weights import load_tacafnet
from tacaf.tensors import METADATA, TensorFile, save_sealed
from tacaf.vocabulary import InputError

CONFIG = ModelConfig.model_validate(
    {
        "backbone": {"width": 4, "blocks": [1, 1, 1, 1]},
        "ipcam": {"node_width": 8, "attention_width": 4, "pair_width": 4},
    }
)
FACTS = {
    "model": CONFIG.model_dump(mode="json"),
    "identities": 3,
    "height": 96,
    "width": 48,
    "trained_on": {"set": "some", "sha256": "0" * 64, "split": "train"},
    "scales": {},
    "seed": 0,
    "chosen": "last epoch (3)",
    "usual_embedding": "full",
    "versions": {"torch": "2.13", "faiss": None},
    "commit": None,
}


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return TacafNet(CONFIG, 3).state_dict()


@pytest.fixture
def path(state, tmp_path):
    write_model(tmp_path / "model.safetensors", state, FACTS)
    return tmp_path / "model.safetensors"


def model_with(part: str, values: dict) -> dict:
    model = FACTS["model"]
    return {"model": {**model, part: {**model[part], **values}}}


def facts_of(path) -> dict:
    return json.loads(TensorFile.open(path).metadata[METADATA])


def refused(path, says=".") -> str:
    with pytest.raises(InputError, match=says) as raised:
        load_model(path)
    text = str(raised.value)
    assert path.name in text
    assert "\n" not in text
    assert len(text) < 1000
    return text


def test_what_is_written_is_read_and_the_bytes_are_the_same_every_time(path, state, tmp_path):
    model, card = load_model(path)
    assert (card.model, card.height, card.usual_embedding) == (CONFIG, 96, "full")
    assert all(
        torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items() if "classifier" not in name
    )
    write_model(tmp_path / "again", state, FACTS)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_a_file_without_a_hash_is_refused(path, state):
    facts = {"format": "tacaf-model", "format_version": 3, **FACTS}
    save_file(state, path, {METADATA: json.dumps(facts)})
    refused(path, "seal")


def test_a_card_from_before_a_key_of_the_model_was_removed_or_added_loads(path, state):
    model = {name: value for name, value in FACTS["model"].items() if name != "kernels"}
    facts = {**facts_of(path), "model": {**model, "cmaam": {**model["cmaam"], "matching": "features"}}}
    save_sealed(path, state, facts)
    assert load_model(path)[1].model == CONFIG


def test_a_model_trained_with_the_definitions_is_used_with_the_kernels(path, state):
    trained = CONFIG.model_copy(update={"kernels": "reference"})
    write_model(path, state, {**FACTS, "model": trained.portable().model_dump(mode="json")})
    assert load_model(path)[0].config.kernels == "auto"


@pytest.mark.slow
def test_a_damaged_file_is_noticed(path):
    whole = path.read_bytes()
    for _, data in damaged(whole, 300):
        path.write_bytes(data)
        refused(path)


def test_a_model_is_not_started_from_a_damaged_file(path):
    data = bytearray(path.read_bytes())
    load_tacafnet(TacafNet(CONFIG, 5), path)
    data[-3000] ^= 16
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load_tacafnet(TacafNet(CONFIG, 5), path)


@pytest.mark.long
def test_a_damaged_file_is_noticed_at_length(path):
    whole = path.read_bytes()
    for _, data in damaged(whole, 20_000, seed=1):
        path.write_bytes(data)
        refused(path)


def test_a_card_of_another_form_is_refused_or_is_one():
    """With a right hash: somebody made the file so."""
    refusals = 0
    for _, odd in retyped({"format": "tacaf-model", "format_version": 3, **FACTS}):
        try:
            parse(json.dumps(odd), ModelCard, "the card").model.check_input(96, 48)
        except InputError:
            refusals += 1
    assert refusals > 500


@pytest.mark.parametrize("text", ["", "hello", "null", "[]", "3", '{"format": NaN}', "[" * 10_000, '{"a": 1, "a": 1}'])
def test_metadata_that_is_no_card_is_refused(path, state, text):
    save_file(state, path, {METADATA: text})
    assert "metadata" in refused(path)
    save_file(state, path)
    assert "metadata" in refused(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"height": 0}, "height"),
        ({"height": -5}, "height"),
        ({"height": 97}, "height 97"),
        ({"height": 10**9}, "height"),
        ({"height": "abc"}, "height"),
        ({"height": True}, "height"),
        ({"identities": 2**31}, "identities"),
        ({"seed": -1}, "seed"),
        ({"usual_embedding": "all"}, "usual_embedding"),
        ({"trained_on": {"set": "some", "split": "train"}}, "trained_on.sha256"),
        ({"format_version": 2}, "format_version"),
        ({"format_version": 4}, "format_version"),
        (model_with("cmaam", {"matching": "deviations"}), "matching"),
        ({"more": 1}, "more"),
        (model_with("backbone", {"width": 10**9}), "width"),
        (model_with("backbone", {"width": 4.0}), "width"),
        (model_with("backbone", {"blocks": [9**9, 1, 1, 1]}), "blocks"),
        (model_with("backbone", {"width": 2048}), "another shape"),
        (model_with("ipcam", {"rounds": 10**6}), "rounds"),
        (model_with("ipcam", {"levels": [1, 100_000]}), "levels"),
    ],
)
def test_a_card_that_cannot_be_true_is_refused_by_its_field(path, state, change, says):
    save_sealed(path, state, {**facts_of(path), **change})
    assert says in refused(path)


def test_a_card_makes_nobody_fetch_weights(path, state):
    backbone = {"kind": "transformers", "name": "convnext", "weights": "somebody/something", "download": True}
    save_sealed(path, state, {**facts_of(path), "model": {**FACTS["model"], "backbone": backbone}})
    refused(path, r"model\.backbone\.weights")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(path, state, value):
    spoilt = {**state, "backbone.layer3.0.bn1.bias": state["backbone.layer3.0.bn1.bias"] * value}
    write_model(path, spoilt, FACTS)
    refused(path, r"backbone\.layer3\.0\.bn1\.bias")


def with_header(header: object, data: bytes = bytes(64), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, stop: int, shape: list, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"hello, world",
        bytes(7),
        bytes(8),
        bytes(100),
        with_header({}),
        with_header([]),
        with_header(b"{"),
        with_header({"a": entry(0, 64, [16])}, length=2**63),
        with_header({"a": entry(0, 64, [16])}, length=10**8),
        with_header(b"{" + b" " * (2**24) + b"}"),
        with_header({"a": entry(0, 32, [8]), "b": entry(16, 64, [12])}),
        with_header({"a": entry(0, 32, [8]), "b": entry(40, 64, [6])}),
        with_header({"a": entry(0, 64, [17])}),
        with_header({"a": entry(0, 64, [-16])}),
        with_header({"a": entry(0, 64, [2**62, 2**62])}),
        with_header({"a": entry(64, 0, [16])}),
        with_header({"a": entry(0, 2**60, [2**58])}),
        with_header({"a": entry(0, 64, [16], "F33")}),
        with_header({"a": 3}),
        with_header({"a": None}),
        with_header({"__metadata__": {"tacaf": 3}}, b""),
        with_header({"__metadata__": []}, b""),
        with_header(b'{"a": {"dtype": "F32"}, "a": {}}'),
        with_header(b"\xff\xfe{}"),
        with_header(b"[" * 100_000),
    ],
)
def test_what_is_no_safetensors_file_is_refused(path, data):
    path.write_bytes(data)
    refused(path)


def test_a_folder_or_nothing_at_all(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    refused(tmp_path / "model.safetensors", "is not a file")
    refused(tmp_path / "none", "does not exist")


@pytest.mark.long
def test_tensors_of_another_shape_name_or_type_are_refused(path, state):
    """Whatever the card says, with a right hash."""
    facts = facts_of(path)
    for name in state:
        if "classifier" in name:
            continue
        for other in ({}, {name: state[name][None].clone()}, {name + "x": state[name].clone()}):
            save_sealed(path, {**{key: one for key, one in state.items() if key != name}, **other}, facts)
            refused(path)


def test_nothing_of_a_file_is_lost_when_it_cannot_be_written(path, state, monkeypatch):
    whole = path.read_bytes()
    monkeypatch.setattr(
        "tacaf.tensors.save_file", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(InputError, match=r"model\.safetensors"):
        write_model(path, state, FACTS)
    assert path.read_bytes() == whole
    assert [one.name for one in path.parent.iterdir()] == ["model.safetensors"]
