"""LLCM: training by lists, test by folders, cameras that see both modalities, and every way the folder can be wrong."""

import shutil

import pytest

from shards.pedestrians.synth import synthesise
from shards.sources import llcm
from shards.verify import verify
from tacaf.vocabulary import InputError
from tests.shards.raw import samples, write_llcm


def test_the_layout(tmp_path):
    root = write_llcm(tmp_path / "raw")
    packed = llcm.pack(root, tmp_path / "set")
    assert packed.warnings == ()
    assert packed.index.splits == {"train": [5, 7], "test": [6, 8]}
    assert packed.index.counts["train"]["infrared"].model_dump() == {"images": 8, "pids": 2}
    assert packed.index.locations is None
    assert [entry.path for entry in packed.index.left_out] == [
        f"test_{name}/cam{camid}/0009" for name in ("nir", "vis") for camid in (1, 2)
    ]
    assert packed.index.left_out_count == 4
    found = samples(tmp_path / "set")
    assert len(found) == 24
    for key, extension, image, facts in found:
        parts = facts["source"].split("/")
        modality = "visible" if parts[0].endswith("vis") else "infrared"
        test = parts[0].startswith("test_")
        assert facts["split"] == ("test" if test else "train")
        assert facts["pid"] == int(parts[-2])
        assert facts["camid"] == int(parts[-1].split("_c")[1][:2])
        number = 2 if "_f0030_" in parts[-1] else 1
        assert key == f"{modality}_{facts['pid']:04d}_c{facts['camid']}_{number:04d}"
        assert extension == "jpg"
        assert image == (root / facts["source"]).read_bytes()
    assert verify(tmp_path / "set") == []


def test_a_whole_procedural_set(tmp_path):
    made = synthesise(tmp_path / "raw", layout="llcm", identities=9, height=48, images_per_camera=1, workers=1)
    packed = llcm.pack(tmp_path / "raw", tmp_path / "set")
    assert packed.warnings == ()
    assert packed.index.images == made["images"]
    assert [len(pids) for pids in packed.index.splits.values()] == [6, 3]
    assert verify(tmp_path / "set", quick=True) == []


def test_a_parent_folder_may_be_called_cam(tmp_path):
    """The usual readers split the whole path at `cam`."""
    root = write_llcm(tmp_path / "my_cam9_data" / "raw")
    llcm.pack(root, tmp_path / "set")
    assert {facts["camid"] for *_, facts in samples(tmp_path / "set")} == {1, 2}


def test_deviations_are_warned_of(tmp_path, monkeypatch):
    root = write_llcm(tmp_path / "raw")
    monkeypatch.setattr(llcm, "REAL_IDENTITIES", {"train": 2, "test": 2})
    assert llcm.pack(root, tmp_path / "a").warnings == (
        "expected 46767 images as in the published set, found 24; results are not comparable",
    )
    text = (root / "idx/train_vis.txt").read_text()
    (root / "idx/train_vis.txt").write_text(text.replace(" 1\n", " 0\n"))
    assert "do not follow the folders' ids" in llcm.pack(root, tmp_path / "b").warnings[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: shutil.rmtree(root), r"expected the folder .*vis, nir.*found nothing"),
        (lambda root: shutil.rmtree(root / "idx"), r"idx with train_vis\.txt.*found nothing"),
        (lambda root: shutil.rmtree(root / "test_nir"), r"test_nir with the infrared test images"),
        (lambda root: shutil.rmtree(root / "nir/0005"), r"nir/0005/0005_c01_s1_f0004_nir\.jpg .*No such file"),
        (lambda root: (root / "idx/train_nir.txt").unlink(), r"train_nir\.txt .*does not exist"),
        (lambda root: (root / "idx/train_nir.txt").write_text(""), r"expected infrared images in split train"),
        (
            lambda root: (root / "idx/train_nir.txt").write_text("nir/5/x.jpg 0"),
            r"paths like nir/0001/0001_c01_name\.jpg",
        ),
        (lambda root: (root / "idx/train_nir.txt").write_text("nir/../5/x_c1_.jpg 0"), r"paths like nir/0001"),
        (lambda root: (root / "idx/test_id.txt").write_text(""), r"expected identities in split test"),
        (lambda root: (root / "idx/test_id.txt").write_text("6,7"), r"1 in both train and test \(7\)"),
        (lambda root: (root / "test_vis/cam1/0006/0006_c01_f1.jpg").write_bytes(b"\xff\xd8"), r"--skip-bad"),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path, change, message):
    root = write_llcm(tmp_path / "raw")
    change(root)
    with pytest.raises(InputError, match=message):
        llcm.pack(root, tmp_path / "set")
    assert not (tmp_path / "set").exists()
