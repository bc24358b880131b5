"""export.py: both forms give the run's descriptors, the same bytes every time, and nothing where they would not."""

import itertools
import json
import shutil
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from launch import export
from perf.attacks.mutations import damaged, retyped
from tacaf.documents import parse
from tacaf.files import sha256_of
from tacaf.search import exporting
from tacaf.search.card import ExportCard, write_card
from tacaf.search.embedder import Embedder
from tacaf.tensors import TensorFile, save_sealed
from tacaf.vocabulary import Embedding, InputError, Modality
from tests.model.test_efficientnet import published
from tests.train.finished import write_model, write_scores


@pytest.fixture(scope="module")
def run(sysu_shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_scores(folder, write_model(folder, sysu_shards))
    return folder


@pytest.fixture(scope="module")
def onnx(run):
    assert export.main(["--run", str(run), "--to", "onnx"]) == 0
    return run / "export-onnx"


@pytest.fixture(scope="module")
def safetensors(run):
    assert export.main(["--run", str(run), "--to", "safetensors"]) == 0
    return run / "export-safetensors"


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("modality", list(Modality))
@pytest.mark.parametrize("embedding", get_args(Embedding))
def test_onnx_gives_the_runs_descriptors(run, onnx, modality, embedding, size):
    images = [np.random.default_rng(seed).integers(0, 255, (90, 40, 3), dtype=np.uint8) for seed in range(size)]
    expected_BD = Embedder.load(run).embed(images, modality, embedding)
    loaded = Embedder.load(onnx / "visible.onnx")
    assert loaded.model is None
    assert expected_BD.shape == (size, loaded.embedding_width(embedding))
    np.testing.assert_allclose(loaded.embed(images, modality, embedding), expected_BD, atol=1e-4)


@pytest.mark.slow
def test_the_graphs_names_are_the_documented_ones(onnx):
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx / "infrared.onnx", providers=["CPUExecutionProvider"])
    (given,), (found,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape[1:], found.name) == ("images", [3, 96, 48], "embedding")
    assert isinstance(given.shape[0], str), "the batch is dynamic"


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes_and_no_path_of_this_machine(run, onnx, tmp_path):
    assert export.main(["--run", str(run), "--to", "onnx", "--out", str(tmp_path / "again")]) == 0
    for path in onnx.iterdir():
        data = path.read_bytes()
        assert data == (tmp_path / "again" / path.name).read_bytes()
        assert b".py" not in data
        assert str(run).encode() not in data


@pytest.fixture
def run_with_another_backbone(sysu_shards, tmp_path):
    """With weights from a file that is gone when the run is used."""
    run, weights = tmp_path / "run", tmp_path / "lite0.safetensors"
    save_file(published(), weights)
    backbone = f"model.backbone={{kind: efficientnet_lite, weights: {weights}}}"
    write_scores(run, write_model(run, sysu_shards, 3, backbone))
    weights.unlink()
    return run


@pytest.mark.slow
def test_a_run_with_another_backbone_is_used_and_exported_without_its_first_weights(run_with_another_backbone):
    run = run_with_another_backbone
    assert export.main(["--run", str(run), "--to", "safetensors"]) == 0
    own, exported = Embedder.load(run), Embedder.load(run / "export-safetensors")
    head = own.model.backbone.layer4.get_submodule("5").weight.detach()
    np.testing.assert_array_equal(head, published()["_conv_head.weight"])
    card = json.loads((run / "export-safetensors" / "card.json").read_text())
    assert card["model"]["backbone"] == {"kind": "efficientnet_lite", "weights": None, "last_stride": 1}
    image = np.random.default_rng(0).integers(0, 255, (90, 40, 3), dtype=np.uint8)
    np.testing.assert_array_equal(exported.embed([image], "infrared"), own.embed([image], "infrared"))


@pytest.mark.long
def test_onnx_gives_the_descriptors_of_another_backbone(run_with_another_backbone):
    run = run_with_another_backbone
    assert export.main(["--run", str(run), "--to", "onnx"]) == 0
    own, exported = Embedder.load(run), Embedder.load(run / "export-onnx")
    assert exported.model is None
    images = [np.random.default_rng(seed).integers(0, 255, (90, 40, 3), dtype=np.uint8) for seed in range(3)]
    for modality in Modality:
        np.testing.assert_allclose(exported.embed(images, modality), own.embed(images, modality), atol=1e-4)


def test_the_safetensors_hold_no_classifier_and_give_the_same(run, safetensors):
    with safe_open(safetensors / "model.safetensors", "pt") as file:
        kept = set(file.keys())
    with safe_open(run / "model.safetensors", "pt") as file:
        left_out = set(file.keys()) - kept
    assert left_out
    assert all("classif" in name for name in left_out)
    own, exported = Embedder.load(run), Embedder.load(safetensors)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 40, 3), dtype=np.uint8))
    np.testing.assert_array_equal(exported.embed([image], "infrared"), own.embed([image], "infrared"))
    assert exported.model_sha256 == own.model_sha256


@pytest.mark.slow
def test_the_card_says_what_a_user_must_know(run, onnx, safetensors):
    own = Embedder.load(run)
    for folder in (onnx, safetensors):
        card = json.loads((folder / "card.json").read_text())
        assert card["trained_on"] == own.card.trained_on
        assert card["preprocessing"]["size"] == {"height": own.height, "width": own.width}
        scored = {path.stem: json.loads(path.read_text())["mean"] for path in sorted(run.glob("results/*.json"))}
        assert [result["mean"] for result in card["results"]] == list(scored.values())
        assert card["check"]["images"] == "the run's shard set"
        assert card["check"]["largest_difference"] <= card["check"]["tolerance"] == 1e-4
        slices = list(card["embedding"]["slices"].values())
        assert [slices[0][0], slices[-1][1]] == [0, card["embedding"]["width"]]
        assert all(before[1] == after[0] for before, after in itertools.pairwise(slices))
        for word in ("licence", "intended_use", "not_for", "exported_with"):
            assert card[word]


@pytest.mark.slow
def test_unless_told_otherwise_a_descriptor_is_of_the_kind_that_was_scored(run, onnx, safetensors):
    image = np.random.default_rng(0).integers(0, 255, (90, 40, 3), dtype=np.uint8)
    result = json.loads(next(run.glob("results/*.json")).read_text())
    for folder in (run, onnx, safetensors):
        embedder = Embedder.load(folder)
        assert embedder.usual_embedding == result["embedding"] == "global_and_parts"
        found_1D = embedder.embed([image], "visible")
        assert np.array_equal(found_1D, embedder.embed([image], "visible", result["embedding"]))
        assert found_1D.shape[1] == embedder.embedding_width() == result["embedding_width"]
        assert found_1D.shape[1] < embedder.embedding_width("full")


def test_the_first_slice_is_the_global_feature(run):
    embedder = Embedder.load(run)
    image = np.random.default_rng(0).integers(0, 255, (90, 40, 3), dtype=np.uint8)
    start, stop = embedder.card.embedding.slices["global feature"]
    own_D = embedder.embed([image], "visible", "full")[0, start:stop]
    global_D = embedder.embed([image], "visible", "global_only")[0]
    np.testing.assert_allclose(own_D / np.linalg.norm(own_D), global_D, atol=1e-6)


@pytest.mark.slow
def test_a_difference_leaves_nothing_behind(run, tmp_path, monkeypatch, capsys):
    def drawn_otherwise(embedder, images, folder):
        shutil.copytree(run / "export-onnx", folder, dirs_exist_ok=True)
        (folder / "card.json").unlink()
        shutil.copy(folder / "visible.onnx", folder / "infrared.onnx")

    monkeypatch.setattr(exporting, "write_onnx", drawn_otherwise)
    assert export.main(["--run", str(run), "--to", "onnx", "--out", str(tmp_path / "out" / "x")]) == 2
    assert "0.0001" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("case", ["no shards", "a folder of images", "too few images"])
def test_images_to_compare_on(run, case, tmp_path, capsys):
    other, words = tmp_path / "run", []
    other.mkdir()
    shutil.copy(run / "model.safetensors", other)
    if case != "no shards":
        for number in range(7 if case == "a folder of images" else 6):
            pixels = np.random.default_rng(number).integers(0, 255, (60, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        words = ["--images", str(tmp_path)]
    status = export.main(["--run", str(other), "--to", "safetensors", *words])
    if case == "too few images":
        assert status == 2
        error = capsys.readouterr().err
        assert "at least 7" in error
        assert "got 6" in error
    else:
        card = json.loads((other / "export-safetensors" / "card.json").read_text())
        assert card["check"]["images"] == {"no shards": "procedural pedestrians"}.get(case, "--images")
        said = capsys.readouterr().err
        assert ("config.yaml" in said or "configuration file" in said) == (case == "no shards"), "why not the run's set"


def test_what_is_there_is_not_written_over(run, safetensors, capsys):
    assert export.main(["--run", str(run), "--to", "safetensors"]) == 2
    assert "export-safetensors" in capsys.readouterr().err


@pytest.mark.slow
def test_a_changed_or_missing_graph_is_refused(onnx, tmp_path):
    for name in ("changed", "missing", "cardless"):
        shutil.copytree(onnx, tmp_path / name)
    with (tmp_path / "changed" / "visible.onnx").open("ab") as file:
        file.write(b"x")
    (tmp_path / "missing" / "infrared.onnx").unlink()
    (tmp_path / "cardless" / "card.json").write_text("{}")
    for name, says in (("changed", "missing or is not"), ("missing", "missing or is not"), ("cardless", "card")):
        with pytest.raises(InputError, match=says):
            Embedder.load(tmp_path / name / "visible.onnx")


@pytest.mark.slow
def test_an_onnx_export_is_not_exported_again(onnx, tmp_path, capsys):
    words = ["--run", str(onnx), "--to", "onnx", "--out", str(tmp_path / "x")]
    assert export.main(words) == 2
    assert "ONNX export" in capsys.readouterr().err


def copy_of(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def refused(path) -> str:
    with pytest.raises(InputError) as raised:
        Embedder.load(path)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def described(width: int, slices: dict) -> dict:
    return {"width": width, "global_width": 3, "slices": slices, "length": 1, "compare_by": "cosine"}


def resealed(folder, **changes) -> None:
    """The card with other facts and a right hash."""
    write_card(folder, {**json.loads((folder / "card.json").read_text()), **changes})


def test_a_model_that_is_not_the_one_of_its_card_is_refused(run, safetensors, tmp_path):
    folder = copy_of(safetensors, tmp_path)
    assert Embedder.load(folder / "model.safetensors").height == 96
    shutil.copy(run / "model.safetensors", folder)  # sound, and with classifiers another file
    for path in (folder, folder / "model.safetensors"):
        assert "model.safetensors" in refused(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["card.json", "model.safetensors", "visible.onnx"])
@pytest.mark.parametrize(("count", "seed"), [(40, 0), pytest.param(3000, 1, marks=pytest.mark.long)])
def test_a_changed_byte_of_an_export_is_noticed(onnx, safetensors, tmp_path, name, count, seed):
    folder = copy_of(onnx if name.endswith("onnx") else safetensors, tmp_path)
    whole = (folder / name).read_bytes()
    for what, data in damaged(whole, count, seed):
        (folder / name).write_bytes(data)
        assert name in refused(folder), what


@pytest.mark.slow
def test_a_card_of_another_form_is_refused(onnx):
    facts = json.loads((onnx / "card.json").read_text())
    free = ("preprocessing", "check", "onnx")  # for people
    refusals = 0
    for where, odd in retyped({name: {} if name in free else value for name, value in facts.items()}):
        try:
            parse(json.dumps(odd), ExportCard, "card.json", 2**24)
        except InputError:
            refusals += 1
            continue
        assert where
    assert refusals > 600


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"height": 97},
        {"height": 0},
        {"width": 2**20},
        {"height": 192},
        {"model_sha256": "x"},
        {"files": {}},
        {"files": {"../visible.onnx": "0" * 64}},
        {"seed": True},
        {"results": [{"mean": {"rank1": 0.5}}]},
        {"embedding": described(3, {"global feature": [0, 3]})},
        {"embedding": described(9, {"part nodes, coarse to fine": [0, 9]})},
        {"embedding": described(9, {"global feature": [0, 3], "global node": [4, 9]})},
    ],
)
def test_a_card_that_does_not_fit_its_graphs_is_refused(onnx, tmp_path, changes):
    folder = copy_of(onnx, tmp_path)
    resealed(folder, **changes)
    refused(folder)


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"hello", bytes(1000), b"\x08\x07" * 50])
def test_an_onnx_file_that_is_none_is_one_error(onnx, tmp_path, content):
    """With the right hash in the card."""
    folder = copy_of(onnx, tmp_path)
    (folder / "visible.onnx").write_bytes(content)
    files = json.loads((folder / "card.json").read_text())["files"]
    resealed(folder, files={**files, "visible.onnx": sha256_of(folder / "visible.onnx")})
    assert "visible.onnx" in refused(folder)


@pytest.mark.slow
@pytest.mark.parametrize("content", ["", "hello", "null", "[]", '{"format": NaN}', "[" * 9000])
def test_a_card_that_is_none_is_named(onnx, safetensors, tmp_path, content):
    for folder in (onnx, safetensors):
        copy = copy_of(folder, tmp_path)
        (copy / "card.json").write_text(content)
        assert "card.json" in refused(copy)
        shutil.rmtree(copy)


@pytest.mark.slow
def test_a_card_without_a_hash_is_refused(onnx, tmp_path):
    folder = copy_of(onnx, tmp_path)
    facts = json.loads((folder / "card.json").read_text())
    del facts["seal"]
    (folder / "card.json").write_text(json.dumps(facts, indent=1))
    assert "seal" in refused(folder)


def test_weights_that_are_not_finite_are_not_exported(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("export-*"))
    path = tmp_path / "run" / "model.safetensors"
    tensors = load_file(path)
    tensors["head.neck.running_mean"][3] = float("nan")
    save_sealed(path, tensors, json.loads(TensorFile.open(path).metadata["tacaf"]))
    for to in ("onnx", "safetensors"):
        assert export.main(["--run", str(tmp_path / "run"), "--to", to]) == 2
        assert "head.neck.running_mean" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("export-*"))
