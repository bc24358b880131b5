"""SYSU-MM01: the layout, the id lists, what is left out, and every way the folder can be wrong."""

import shutil

import numpy as np
import pytest
from scipy.io import savemat

from shards.sources import sysu_mm01
from shards.verify import verify
from tacaf.shard_set import Tally
from tacaf.vocabulary import InputError, Modality
from tests.shards.raw import column, samples, snapshot, write_image, write_sysu


def test_cameras_give_the_modality_and_lists_the_split(tmp_path):
    packed = sysu_mm01.pack(write_sysu(tmp_path / "raw"), tmp_path / "set")
    index = packed.index
    assert index.name == "sysu_mm01"
    assert index.splits == {"train": [1, 2], "val": [3], "test": [4]}
    assert index.locations == {1: 1, 2: 2, 3: 2, 4: 4, 5: 5, 6: 6}
    assert index.counts["train"] == {
        Modality.VISIBLE: Tally(images=8, pids=2),
        Modality.INFRARED: Tally(images=8, pids=2),
    }
    found = samples(tmp_path / "set")
    assert len(found) == index.images == 32
    for key, extension, _, facts in found:
        camera, pid, name = facts["source"].split("/")
        camid = int(camera.removeprefix("cam"))
        modality = "infrared" if camid in (3, 6) else "visible"
        split = {1: "train", 2: "train", 3: "val", 4: "test"}[int(pid)]
        assert (facts["pid"], facts["camid"], facts["modality"], facts["split"]) == (int(pid), camid, modality, split)
        assert key == f"{modality}_{pid}_c{camid}_{name.removesuffix('.jpg')}"
        assert extension == "jpg"
    assert verify(tmp_path / "set") == []


def test_a_whole_procedural_set(raw_sysu, sysu_shards):
    """Every image of the raw set, once, with its own bytes."""
    raw = {f"{path.relative_to(raw_sysu)}": path.read_bytes() for path in raw_sysu.glob("cam*/*/*.jpg")}
    assert {facts["source"]: image for _, _, image, facts in samples(sysu_shards)} == raw
    lists = {split: (raw_sysu / f"exp/{split}_id.txt").read_text() for split in ("train", "val", "test")}
    pids = {split: {int(word) for word in text.split(",")} for split, text in lists.items()}
    for code, split in enumerate(("train", "val", "test")):
        assert set(column(sysu_shards, "pid")[column(sysu_shards, "split") == code].tolist()) == pids[split]
    assert verify(sysu_shards) == []


def test_numbers_are_places_in_the_folder(tmp_path):
    """The authors' draws count the sorted files from 1, whatever the files are called."""
    root = write_sysu(tmp_path / "raw")
    for name in ("0007.jpg", "0005.jpg", "0010.jpg"):
        write_image(root / "cam1/0004" / name, seed=int(name[:4]))
    sysu_mm01.pack(root, tmp_path / "set")
    numbers = {facts["source"]: key[-4:] for key, _, _, facts in samples(tmp_path / "set")}
    places = [numbers[f"cam1/0004/{name:04d}.jpg"] for name in (1, 2, 5, 7, 10)]
    assert places == ["0001", "0002", "0003", "0004", "0005"]


def test_unlisted_ids_and_strangers_are_left_out_and_counted(tmp_path):
    root = write_sysu(tmp_path / "raw")
    (root / "cam1/0001/Thumbs.db").write_bytes(b"x")
    (root / "cam2/notes.txt").write_text("x")
    packed = sysu_mm01.pack(root, tmp_path / "set")
    assert packed.index.left_out_count == 8  # id 9: two images in four cameras; strangers are no images
    reasons = {entry.path: entry.reason for entry in packed.index.left_out}
    assert reasons["cam3/0009"] == "identity 9 is in no id list: 2 images"
    assert reasons["cam1/0001/Thumbs.db"] == reasons["cam2/notes.txt"] == "not an image of the layout"
    assert len(reasons) == 6
    assert 9 not in column(tmp_path / "set", "pid")


def test_missing_cameras_and_images_are_warned_of(tmp_path):
    root = write_sysu(tmp_path / "raw")
    (root / "exp/test_id.txt").write_text("4,77")
    packed = sysu_mm01.pack(root, tmp_path / "set")
    assert list(packed.warnings) == [
        "no folder cam4",
        "no folder cam5",
        "1 identities of the list test have no images, the first is 77",
    ]
    assert packed.summary().count("warning: ") == 3


def test_mat_lists_serve_where_there_is_no_text(tmp_path):
    root = write_sysu(tmp_path / "raw")
    sysu_mm01.pack(root, tmp_path / "a")
    for split, ids in {"train": [1, 2], "val": [3], "test": [4]}.items():
        (root / f"exp/{split}_id.txt").unlink()
        savemat(root / f"exp/{split}_id.mat", {"id": np.array([ids], dtype=np.uint16)})
    sysu_mm01.pack(root, tmp_path / "b")
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
    (root / "exp/val_id.mat").write_bytes(b"no mat file")
    with pytest.raises(InputError, match=r"val_id\.mat: "):
        sysu_mm01.pack(root, tmp_path / "c")


def test_the_authors_lists_have_the_published_sizes(golden):
    sizes = {split: len(sysu_mm01._id_list(golden / "sysu_mm01", split)) for split in ("train", "test")}
    assert sizes == {split: sysu_mm01.REAL_IDENTITIES[split] for split in sizes}


def test_counts_are_compared_with_the_published_ones():
    def counts(visible, infrared, val, queries):
        tallies = {"train": (visible, infrared), "val": (0, val), "test": (1, queries)}
        return {
            split: {m: Tally(images=n, pids=1) for m, n in zip(Modality, pair, strict=True)}
            for split, pair in tallies.items()
        }

    assert sysu_mm01.count_warnings(counts(22_258, 11_000, 909, 3_803)) == []
    warnings = sysu_mm01.count_warnings(counts(22_257, 11_000, 909, 3_000))
    assert len(warnings) == 2
    assert "train+val: expected 22258 visible images as in the published set, found 22257" in warnings[0]
    assert "test: expected 3803 infrared images as in the published set, found 3000" in warnings[1]


def test_only_the_real_lists_are_compared(tmp_path, monkeypatch):
    root = write_sysu(tmp_path / "raw")
    assert not any("published" in text for text in sysu_mm01.pack(root, tmp_path / "a").warnings)
    monkeypatch.setattr(sysu_mm01, "REAL_IDENTITIES", {"train": 2, "val": 1, "test": 1})
    assert sum("published" in text for text in sysu_mm01.pack(root, tmp_path / "b").warnings) == 3


def _remove(*names):
    def change(root):
        for name in names:
            path = root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def _write(name, text):
    return lambda root: (root / name).write_text(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: shutil.rmtree(root), r"expected the folder .*raw with .*cam1 to cam6.* found nothing"),
        (_remove("exp"), r"expected the folder .*exp with the id lists"),
        (_remove("exp/val_id.txt"), r"val_id\.txt with ids separated by commas, got: .*does not exist"),
        (_remove("cam3", "cam6"), r"expected infrared images in .*cam3, cam6.*found none"),
        (_remove("cam1", "cam2"), r"expected visible images in .*cam1, cam2, cam4, cam5.*found none"),
        (_remove("cam3/0004", "cam6/0004"), r"expected infrared images in split test, found none"),
        (_write("exp/test_id.txt", "\n"), r"expected identities in split test .*found none"),
        (_write("exp/test_id.txt", "77"), r"expected identities with images in split test, found none"),
        (_write("exp/val_id.txt", "2,3"), r"1 in both train and val \(2\)"),
        (_write("exp/train_id.txt", "1,two"), r"train_id\.txt: expected ids separated by commas, got 'two'"),
        (_write("exp/train_id.txt", "1,-2"), r"expected ids separated by commas, got '-2'"),
        (
            lambda root: shutil.copytree(root / "cam1/0001", root / "cam1/1"),
            r"one folder per number .*cam1, got 0001 and 1",
        ),
        (lambda root: (root / "cam1/0001/0001.jpg").write_bytes(b""), r"cam1/0001/0001\.jpg .*empty file.*--skip-bad"),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path, change, message):
    root = write_sysu(tmp_path / "raw")
    change(root)
    with pytest.raises(InputError, match=message):
        sysu_mm01.pack(root, tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir() if path.name != "raw"] == []
