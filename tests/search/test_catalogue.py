"""A kept gallery: it grows by content, shrinks for good, refuses other models, and a broken file is named."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors

from perf.attacks.mutations import damaged, retyped
from tacaf.documents import parse
from tacaf.images import GreyScale
from tacaf.search import catalogue as module
from tacaf.search.catalogue import Catalogue
from tacaf.search.catalogue_file import CatalogueFacts, locked, open_catalogue, save_catalogue
from tacaf.search.embedder import Embedder
from tacaf.tensors import save_sealed
from tacaf.vocabulary import InputError, Modality
from tests.train.finished import write_model


@pytest.fixture(scope="module")
def embedder(untrained_run):
    return Embedder.load(untrained_run)


@pytest.fixture
def folder(tmp_path):
    """Five images of two people."""
    for number, name in enumerate(("ann/1.png", "ann/2.png", "bob/1.png", "bob/2.png", "bob2/1.png")):
        path = tmp_path / "gallery" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(number).save(path)
    return tmp_path / "gallery"


def draw(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (60, 30, 3), dtype=np.uint8))


@pytest.fixture
def made(embedder, folder):
    catalogue = Catalogue.new(embedder, Modality.VISIBLE)
    assert catalogue.add(embedder, folder) == (5, [])
    return catalogue


def test_saved_and_opened_it_is_the_same(embedder, made, folder, tmp_path):
    save_catalogue(tmp_path / "index", made)
    found = open_catalogue(tmp_path / "index")
    assert found.names == made.names == ["ann/1.png", "ann/2.png", "bob/1.png", "bob/2.png", "bob2/1.png"]
    assert (found.sha256, found.modality, found.flip) == (made.sha256, Modality.VISIBLE, False)
    assert found.embedding == embedder.usual_embedding == "global_and_parts"
    expected = embedder.embed([folder / name for name in made.names], "visible")
    np.testing.assert_allclose(found.descriptors_GD, expected, atol=1e-6)
    assert str(tmp_path).encode() not in (tmp_path / "index").read_bytes(), "names are relative"


def test_it_grows_by_what_is_new_by_content(embedder, made, folder, monkeypatch):
    draw(9).save(folder / "carl.png")
    shutil.copy(folder / "ann" / "1.png", folder / "copy.png")
    before = made.descriptors_GD.copy()
    embedded = []
    monkeypatch.setattr(module, "embed_files", watched(module.embed_files, embedded))
    assert made.add(embedder, folder) == (2, [])
    assert made.names[5:] == ["carl.png", "copy.png"], "the same content keeps both names"
    assert made.sha256[6] == made.sha256[0]
    np.testing.assert_array_equal(made.descriptors_GD[:5], before)
    np.testing.assert_array_equal(made.descriptors_GD[6], before[0])
    assert made.add(embedder, folder) == (0, [])
    assert embedded == [1, 0], "a known content is not embedded again"


def watched(embed_files, counts: list[int]):
    def embed(*args, **options):
        found = embed_files(*args, **options)
        counts.append(len(found.places_N))
        return found

    return embed


def test_copies_in_a_new_gallery_keep_their_names(embedder, folder):
    shutil.copy(folder / "bob" / "2.png", folder / "ann" / "0.png")
    found = Catalogue.new(embedder, Modality.VISIBLE)
    assert found.add(embedder, folder) == (6, [])
    assert sorted(found.names) == sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert found.remove([str(folder / "bob" / "2.png")]) == ["ann/0.png", "bob/2.png"]


def test_a_name_that_became_a_copy_of_another_image_is_refused(embedder, made, folder):
    shutil.copy(folder / "bob" / "1.png", folder / "ann" / "1.png")
    with pytest.raises(InputError, match=r"ann/1\.png"):
        made.add(embedder, folder)


def test_large_galleries_are_saved_on_the_way(embedder, made, folder, monkeypatch):
    monkeypatch.setattr(module, "SAVE_EVERY", 2)
    catalogue, saved = Catalogue.new(embedder, Modality.VISIBLE), []
    catalogue.add(embedder, folder, lambda: saved.append(len(catalogue.names)))
    assert saved == [2, 4]
    assert catalogue.names == made.names
    np.testing.assert_allclose(catalogue.descriptors_GD, made.descriptors_GD, atol=1e-6)


def test_a_name_with_another_image_is_refused(embedder, made, folder):
    draw(9).save(folder / "ann" / "1.png")
    with pytest.raises(InputError, match=r"ann/1\.png"):
        made.add(embedder, folder)


def test_everything_that_is_left_out_is_listed(embedder, folder, tmp_path):
    draw(9).save(tmp_path / "outside.png")
    (tmp_path / "elsewhere").mkdir()
    draw(8).save(tmp_path / "elsewhere" / "1.png")
    (folder / "bad.png").write_bytes(b"hello")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "nothing.png").symlink_to(tmp_path / "none.png")
    (folder / "itself.png").symlink_to(folder / "itself.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "phone.heic").write_bytes(b"x")
    (folder / "notes").write_bytes(b"x")
    draw(7).save(folder / "old.jfif", "JPEG")
    catalogue = Catalogue.new(embedder, Modality.VISIBLE)
    added, left_out = catalogue.add(embedder, folder)
    assert added == 6
    assert "old.jfif" in catalogue.names
    named = sorted(text.split(": ")[0].split(" cannot")[0].removeprefix(f"{folder}/") for text in left_out)
    assert named == ["bad.png", "itself.png", "link.png", "linked", "notes", "nothing.png", "phone.heic", "pipe.png"]


@pytest.mark.parametrize(
    ("words", "gone"),
    [
        (["ann/1.png"], [0]),
        (["bob"], [2, 3]),
        (["bob/", "ann/2.png"], [1, 2, 3]),
        (["{folder}/ann/2.png"], [1]),
        (["ann", "bob", "bob2"], [0, 1, 2, 3, 4]),
    ],
    ids=["a name", "a folder", "both", "an image file", "all"],
)
def test_people_are_taken_out_for_good(made, folder, tmp_path, words, gone):
    save_catalogue(tmp_path / "index", made)
    kept = [row for row in range(5) if row not in gone]
    expected, names = made.descriptors_GD[kept], list(made.names)
    taken = made.descriptors_GD[gone]
    assert made.remove([word.format(folder=folder) for word in words]) == [names[row] for row in gone]
    save_catalogue(tmp_path / "index", made)
    found = open_catalogue(tmp_path / "index")
    np.testing.assert_array_equal(found.descriptors_GD, expected)
    assert found.names == [names[row] for row in kept]
    data = (tmp_path / "index").read_bytes()
    for row, descriptor in zip(gone, taken, strict=True):
        assert descriptor.tobytes() not in data
        assert names[row].encode() + b'"' not in data


def test_an_unknown_name_removes_nothing(made, tmp_path):
    for words in (["ann", "nobody"], ["bo"], [str(tmp_path)], [""]):
        with pytest.raises(InputError, match=re.escape(repr(words[-1]))):
            made.remove(words)
    assert len(made.names) == 5


def test_another_model_embedding_or_flip_is_refused(embedder, made, sysu_shards, tmp_path):
    made.must_fit(embedder, made.embedding, False)
    for kind in (("global_only", False), (made.embedding, True)):
        with pytest.raises(InputError, match="global_and_parts"):
            made.must_fit(embedder, *kind)
    write_model(tmp_path / "other", sysu_shards)
    weights = load_tensors(tmp_path / "other" / "model.safetensors")
    name = next(name for name in sorted(weights) if "running_mean" in name)
    weights[name] = weights[name] + 1
    save_sealed(tmp_path / "other" / "model.safetensors", weights, facts_of(tmp_path / "other" / "model.safetensors"))
    with pytest.raises(InputError, match=made.model_sha256[:12]):
        made.must_fit(Embedder.load(tmp_path / "other"), made.embedding, False)


def metadata_of(path) -> dict[str, str]:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


def facts_of(path) -> dict:
    return json.loads(metadata_of(path)["tacaf"])


def refused(path, says=".") -> None:
    with pytest.raises(InputError, match=says) as raised:
        open_catalogue(path)
    text = str(raised.value)
    assert text.startswith(f"cannot read the gallery index {path}: ")
    assert "\n" not in text
    assert len(text) < 1000


@pytest.mark.parametrize("content", [b"hello", b"", bytes(100), None], ids=["text", "empty", "zeros", "missing"])
def test_a_file_that_is_none_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "index").write_bytes(content)
    refused(tmp_path / "index")


@pytest.mark.parametrize(("count", "seed"), [(300, 0), pytest.param(20_000, 1, marks=pytest.mark.long)])
def test_a_damaged_file_is_noticed(made, tmp_path, count, seed):
    save_catalogue(tmp_path / "index", made)
    for _, data in damaged((tmp_path / "index").read_bytes(), count, seed):
        (tmp_path / "index").write_bytes(data)
        refused(tmp_path / "index")


NAMES = {
    "numbers": [1, 2, 3, 4, 5],
    "null": None,
    "a map": {"a": 1},
    "too few": ["a"],
    "empty": ["", "a", "b", "c", "d"],
    "twice": ["a", "a", "b", "c", "d"],
    "outside": ["../a", "b", "c", "d", "e"],
    "from the root": ["/etc/passwd", "b", "c", "d", "e"],
    "a NUL": ["a\0", "b", "c", "d", "e"],
    "endless": ["a" * 20_000, "b", "c", "d", "e"],
    "lists": [["a"], "b", "c", "d", "e"],
}


def spoilt(case: str, tensors: dict, facts: dict) -> None:
    """Change the parts of a sound index."""
    descriptors = tensors["descriptors"]
    if case in NAMES:
        tensors["names"] = torch.tensor(list(json.dumps(NAMES[case]).encode()), dtype=torch.uint8)
    elif case.startswith("names"):
        text = {"names cut": b'["a", "b', "names not UTF-8": b"\xff\xfe", "names nested": b"[" * 90_000}[case]
        tensors["names"] = torch.tensor(list(text), dtype=torch.uint8)
    elif case in ("nan", "long", "zero"):
        descriptors[2] *= {"nan": float("nan"), "long": 1.01, "zero": 0.0}[case]
    elif case == "more tensors":
        tensors["more"] = torch.zeros(1)
    elif case == "no hashes":
        del tensors["sha256"]
    else:
        tensors["descriptors"] = {
            "fewer": descriptors[:4],
            "flat": descriptors.flatten(),
            "deep": descriptors[None],
            "halves": descriptors.half(),
            "doubles": descriptors.double(),
            "no width": descriptors[:, :0],
        }[case].clone()


@pytest.mark.parametrize(
    "case",
    [
        *NAMES,
        "names cut",
        "names not UTF-8",
        "names nested",
        "nan",
        "long",
        "zero",
        "more tensors",
        "no hashes",
        "fewer",
        "flat",
        "deep",
        "halves",
        "doubles",
        "no width",
    ],
)
def test_parts_that_do_not_fit_are_refused_whatever_the_hash(made, tmp_path, case):
    path = tmp_path / "index"
    save_catalogue(path, made)
    tensors, facts = load_tensors(path), facts_of(path)
    spoilt(case, tensors, facts)
    save_sealed(path, tensors, facts)
    refused(path)


def test_metadata_of_another_form_is_refused(made, tmp_path):
    path = tmp_path / "index"
    save_catalogue(path, made)
    facts = facts_of(path)
    refusals = 0
    for where, odd in retyped(facts):
        try:
            parse(json.dumps(odd), CatalogueFacts, "the index")
        except InputError:
            refusals += 1
            continue
        assert where.startswith(("['scale']", "['flip']", "['seal']")), where
    assert refusals > 100


def test_an_index_of_another_version_is_refused(made, tmp_path):
    path = tmp_path / "index"
    save_catalogue(path, made)
    facts = facts_of(path)
    for version in (1, 3):
        save_sealed(path, load_tensors(path), {**facts, "version": version})
        refused(path, "version")
    del facts["seal"]
    save_file(load_file(path), path, {"tacaf": json.dumps(facts)})
    refused(path, "seal")


def test_descriptors_of_another_width_or_range_are_refused(embedder, made):
    made.descriptors_GD = made.descriptors_GD[:, :-1]
    with pytest.raises(InputError, match=str(made.descriptors_GD.shape[1])):
        made.must_fit(embedder, made.embedding, False)
    other = Catalogue.new(embedder, Modality.VISIBLE)
    other.scale = GreyScale(kind="given", low=7000, high=8020)
    with pytest.raises(InputError, match="7000 to 8020"):
        other.must_fit(embedder, other.embedding, False)


def test_a_save_that_fails_leaves_the_old_file(made, tmp_path, monkeypatch):
    save_catalogue(tmp_path / "index", made)
    before = (tmp_path / "index").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tacaf.tensors.save_file", full)
    made.remove(["ann"])
    with pytest.raises(InputError, match="index: no space left"):
        save_catalogue(tmp_path / "index", made)
    assert (tmp_path / "index").read_bytes() == before


def test_an_index_is_written_by_one_at_a_time(tmp_path):
    path = tmp_path / "new" / "index"
    with locked(path), pytest.raises(InputError, match="index"), locked(path):
        pass
    with locked(path):
        pass
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="file"), locked(tmp_path / "file" / "index"):
        pass
