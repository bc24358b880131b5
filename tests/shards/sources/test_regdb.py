"""RegDB: thermal becomes infrared, ten splits become named pid lists, and every way the folder can be wrong."""

import shutil

import pytest

from shards.pedestrians.synth import synthesise
from shards.sources import regdb
from shards.verify import verify
from tacaf.vocabulary import InputError
from tests.shards.raw import column, image_bytes, samples, write_regdb


def test_the_layout(tmp_path):
    root = write_regdb(tmp_path / "raw", splits=10)
    packed = regdb.pack(root, tmp_path / "set")
    assert packed.warnings == ()
    index = packed.index
    odd, even = {"train": [1, 11], "test": [2, 12]}, {"train": [2, 12], "test": [1, 11]}
    expected = {f"{part}_{n}": (odd if n % 2 else even)[part] for n in range(1, 11) for part in ("train", "test")}
    assert index.splits == expected
    assert index.counts["test_10"]["infrared"].model_dump() == {"images": 4, "pids": 2}
    assert index.locations is None
    found = samples(tmp_path / "set")
    assert len(found) == 16
    for key, extension, image, facts in found:
        folder, pid, name = facts["source"].split("/")
        modality = {"Visible": "visible", "Thermal": "infrared"}[folder]
        number = 1 if name.startswith("back") else 2  # by name, not by the digits in it
        assert key == f"{modality}_{int(pid):04d}_c0_{number:04d}"
        assert extension == "bmp"
        assert image == (root / facts["source"]).read_bytes()
        assert facts["split"] is None
    assert set(column(tmp_path / "set", "split").tolist()) == {255}
    assert verify(tmp_path / "set") == []


def test_a_whole_procedural_set(tmp_path):
    synthesise(tmp_path / "raw", layout="regdb", identities=8, height=48, workers=1)
    packed = regdb.pack(tmp_path / "raw", tmp_path / "set")
    assert packed.index.images == 160
    assert packed.index.left_out_count == 0
    assert len(packed.index.splits) == 20
    for number in range(1, 11):
        assert sorted(packed.index.splits[f"train_{number}"] + packed.index.splits[f"test_{number}"]) == list(
            range(1, 9)
        )
    assert verify(tmp_path / "set", quick=True) == []


def test_unlisted_images_are_left_out_and_keep_their_number(tmp_path):
    root = write_regdb(tmp_path / "raw")
    (root / "Visible/1/a_first.bmp").write_bytes(image_bytes(5, "BMP"))
    packed = regdb.pack(root, tmp_path / "set")
    assert [entry.path for entry in packed.index.left_out] == ["Visible/1/a_first.bmp"]
    assert packed.index.left_out_count == 1
    pid, modality = column(tmp_path / "set", "pid"), column(tmp_path / "set", "modality")
    assert column(tmp_path / "set", "number")[(pid == 1) & (modality == 0)].tolist() == [2, 3]


def test_deviations_are_warned_of(tmp_path, monkeypatch):
    root = write_regdb(tmp_path / "raw", splits=2)
    assert regdb.pack(root, tmp_path / "a").warnings == (
        "expected 10 splits, found 2; the published figures are means over ten",
    )
    monkeypatch.setattr(regdb, "REAL_IDENTITIES", 4)
    warnings = regdb.pack(root, tmp_path / "b").warnings
    assert warnings[:2] == tuple(
        f"expected 4120 {modality} images as in the published set, found 8" for modality in ("visible", "infrared")
    )


def _edit(name, old, new):
    def change(root):
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: shutil.rmtree(root), r"expected the folder .*Visible, Thermal and idx.*found nothing"),
        (lambda root: shutil.rmtree(root / "idx"), r"idx with the split lists, found nothing"),
        (lambda root: shutil.rmtree(root / "Thermal"), r"Thermal with the infrared images, found nothing"),
        (lambda root: (root / "idx/test_thermal_2.txt").unlink(), r"test_thermal_2\.txt .*does not exist"),
        (lambda root: (root / "idx/train_visible_1.txt").unlink(), r"train_visible_1\.txt .*does not exist"),
        (
            lambda root: (root / "idx/train_visible_1.txt").write_text("Visible\n"),
            r"txt:1: expected a path and a label",
        ),
        (_edit("idx/train_visible_1.txt", "Visible/1/", "Visible/one/"), r"paths like Visible/285/name\.bmp"),
        (_edit("idx/train_visible_1.txt", "Visible/1/", "../1/"), r"paths like Visible/285/name\.bmp"),
        (_edit("idx/train_visible_1.txt", "Visible/1/", "Visible/3/"), r"the same ids in train_visible_1\.txt and"),
        (
            lambda root: (root / "Visible/1/back_v_10_1.bmp").unlink(),
            r"missing: 1, the first is Visible/1/back_v_10_1",
        ),
        (
            lambda root: (root / "Thermal/2/back_v_10_2.bmp").write_bytes(b"BM"),
            r"Thermal/2/back_v_10_2\.bmp .*--skip-bad",
        ),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path, change, message):
    root = write_regdb(tmp_path / "raw")
    change(root)
    with pytest.raises(InputError, match=message):
        regdb.pack(root, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_split_that_leaks_is_refused(tmp_path):
    root = write_regdb(tmp_path / "raw")
    for kind in ("visible", "thermal"):
        train = (root / f"idx/train_{kind}_2.txt").read_text()
        with (root / f"idx/test_{kind}_2.txt").open("a") as file:
            file.write(train)
    with pytest.raises(InputError, match=r"train_2 and test_2 \(2, 12\)"):
        regdb.pack(root, tmp_path / "set")


def test_a_split_without_identities_is_refused(tmp_path):
    root = write_regdb(tmp_path / "raw")
    for kind in ("visible", "thermal"):
        (root / f"idx/test_{kind}_1.txt").write_text("\n")
    with pytest.raises(InputError, match="split test_1"):
        regdb.pack(root, tmp_path / "set")
