"""A kept gallery: it grows by content, shrinks for good, refuses other models, and a broken file is named."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from tacaf import catalogue as module
from tacaf.catalogue import Catalogue, locked
from tacaf.inference import Embedder
from tacaf.vocabulary import InputError, Modality
from tests.launch.finished import write_model


@pytest.fixture(scope="module")
def embedder(sysu_shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_model(folder, sysu_shards)
    return Embedder.load(folder)


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
    made.save(tmp_path / "index")
    found = Catalogue.open(tmp_path / "index")
    assert found.names == made.names == ["ann/1.png", "ann/2.png", "bob/1.png", "bob/2.png", "bob2/1.png"]
    assert (found.sha256, found.modality, found.flip) == (made.sha256, Modality.VISIBLE, False)
    assert found.embedding == embedder.usual_embedding == "global_and_parts"
    expected = embedder.embed([folder / name for name in made.names], "visible")
    np.testing.assert_allclose(found.descriptors_GD, expected, atol=1e-6)
    assert str(tmp_path).encode() not in (tmp_path / "index").read_bytes(), "names are relative"


def test_it_grows_by_what_is_new_by_content(embedder, made, folder):
    draw(9).save(folder / "carl.png")
    shutil.copy(folder / "ann" / "1.png", folder / "copy.png")
    before = made.descriptors_GD.copy()
    assert made.add(embedder, folder) == (1, [])
    assert made.names[5:] == ["carl.png"]
    np.testing.assert_array_equal(made.descriptors_GD[:5], before)
    assert made.add(embedder, folder) == (0, [])


def test_large_galleries_are_saved_on_the_way(embedder, made, folder, monkeypatch):
    monkeypatch.setattr(module, "SAVE_EVERY", 2)
    monkeypatch.setattr(module, "_BATCH", 2)
    catalogue, saved = Catalogue.new(embedder, Modality.VISIBLE), []
    catalogue.add(embedder, folder, lambda: saved.append(len(catalogue.names)))
    assert saved == [2, 4]
    assert catalogue.names == made.names
    np.testing.assert_allclose(catalogue.descriptors_GD, made.descriptors_GD, atol=1e-6)


def test_a_name_with_another_image_is_refused(embedder, made, folder):
    draw(9).save(folder / "ann" / "1.png")
    with pytest.raises(InputError, match=r"knows as ann/1\.png, got another"):
        made.add(embedder, folder)


def test_what_cannot_be_read_is_listed(embedder, folder, tmp_path):
    (folder / "bad.png").write_bytes(b"hello")
    draw(9).save(tmp_path / "outside.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    added, left_out = Catalogue.new(embedder, Modality.VISIBLE).add(embedder, folder)
    assert added == 5
    assert [text.split(": ")[0].split("/")[-1] for text in left_out] == ["link.png", "bad.png"]


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
    made.save(tmp_path / "index")
    kept = [row for row in range(5) if row not in gone]
    expected, names = made.descriptors_GD[kept], list(made.names)
    taken = made.descriptors_GD[gone]
    assert made.remove([word.format(folder=folder) for word in words]) == [names[row] for row in gone]
    made.save(tmp_path / "index")
    found = Catalogue.open(tmp_path / "index")
    np.testing.assert_array_equal(found.descriptors_GD, expected)
    assert found.names == [names[row] for row in kept]
    data = (tmp_path / "index").read_bytes()
    for row, descriptor in zip(gone, taken, strict=True):
        assert descriptor.tobytes() not in data
        assert names[row].encode() + b'"' not in data


def test_an_unknown_name_removes_nothing(made, tmp_path):
    for words in (["ann", "nobody"], ["bo"], [str(tmp_path)], [""]):
        with pytest.raises(InputError, match="nothing was removed"):
            made.remove(words)
    assert len(made.names) == 5


def test_another_model_embedding_or_flip_is_refused(embedder, made, sysu_shards, tmp_path):
    made.must_fit(embedder, made.embedding, False)
    for kind in (("global_only", False), (made.embedding, True)):
        with pytest.raises(InputError, match="expected the index's descriptors, global_and_parts"):
            made.must_fit(embedder, *kind)
    write_model(tmp_path / "other", sysu_shards)
    weights = load_file(tmp_path / "other" / "model.safetensors")
    name = next(name for name in sorted(weights) if "running_mean" in name)
    weights[name] = weights[name] + 1
    metadata = metadata_of(tmp_path / "other" / "model.safetensors")
    save_file(weights, tmp_path / "other" / "model.safetensors", metadata)
    with pytest.raises(InputError, match="expected the model the index was made with"):
        made.must_fit(Embedder.load(tmp_path / "other"), made.embedding, False)


def metadata_of(path) -> dict[str, str]:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


@pytest.mark.parametrize("case", ["text", "another file", "version", "cut", "nan", "lengths", "missing"])
def test_a_broken_file_is_named(made, tmp_path, case):
    path = tmp_path / "index"
    made.save(path)
    tensors, metadata = load_file(path), metadata_of(path)
    if case == "text":
        path.write_text("hello")
    elif case == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif case == "missing":
        path.unlink()
    elif case == "another file":
        save_file(tensors, path)
    else:
        if case == "version":
            metadata["tacaf"] = metadata["tacaf"].replace('"version": 1', '"version": 9')
        elif case == "nan":
            tensors["descriptors"][2, 0] = np.nan
        else:
            tensors["descriptors"] = tensors["descriptors"][:4].copy()
        save_file(tensors, path, metadata)
    with pytest.raises(InputError, match="expected a gallery index at") as raised:
        Catalogue.open(path)
    assert "\n" not in str(raised.value)


def test_a_save_that_fails_leaves_the_old_file(made, tmp_path, monkeypatch):
    made.save(tmp_path / "index")
    before = (tmp_path / "index").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    made.remove(["ann"])
    with pytest.raises(InputError, match="index: no space left"):
        made.save(tmp_path / "index")
    assert (tmp_path / "index").read_bytes() == before


def test_an_index_is_written_by_one_at_a_time(tmp_path):
    path = tmp_path / "new" / "index"
    with locked(path), pytest.raises(InputError, match="written by another process"), locked(path):
        pass
    with locked(path):
        pass
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="file is not a folder"), locked(tmp_path / "file" / "index"):
        pass
