"""The writer: the contract on disk, the same bytes twice, and nothing left behind by a failure."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from shards import output, shard_job, writer
from shards.verify import verify
from shards.writer import Omission, Record, pack
from tacaf.vocabulary import COLUMNS, InputError, Modality, Split
from tests.shards.raw import column, image_bytes, noise_records, noise_splits, samples, snapshot, write_image


def _pack(root, out, records=None, splits=None, **options):
    records = noise_records(root) if records is None else records
    return pack(records, out, "noise", splits or noise_splits(), root=root, source="noise", **options)


def test_the_contract(tmp_path):
    root, out = tmp_path / "raw", tmp_path / "set"
    records = noise_records(root)
    omissions = [Omission("x/y", "odd: 5 images", 5)]
    packed = _pack(root, out, records[::-1], locations={3: 2, 1: 1}, pid_names={1: "a"}, left_out=omissions)
    assert sorted(path.name for path in out.iterdir()) == [
        "columns",
        "index.json",
        "noise-000000.idx",
        "noise-000000.tar",
    ]
    index = json.loads((out / "index.json").read_text())
    tar = (out / "noise-000000.tar").read_bytes()
    columns = {name: index["columns"].pop(name) for name in COLUMNS}
    assert index == {
        "format": "tacaf-shards",
        "format_version": 2,
        "name": "noise",
        "images": 16,
        "counts": {s: {m: {"images": 4, "pids": 2} for m in ("visible", "infrared")} for s in ("train", "test")},
        "splits": {"train": [1, 2], "test": [3, 4]},
        "pid_names": {"1": "a"},
        "locations": {"1": 1, "3": 2},
        "shards": [
            {"name": "noise-000000.tar", "bytes": len(tar), "sha256": hashlib.sha256(tar).hexdigest(), "images": 16}
        ],
        "columns": {},
        "left_out": [{"path": "x/y", "reason": "odd: 5 images"}],
        "left_out_count": 5,
        "source": "noise",
        "scales": {},
        "seal": index["seal"],
    }
    for name, dtype in COLUMNS.items():
        data = (out / f"columns/{name}.npy").read_bytes()
        assert columns[name] == {"dtype": dtype, "sha256": hashlib.sha256(data).hexdigest()}
        assert column(out, name).dtype == dtype
        assert column(out, name).shape == (16,)
    assert packed.index.model_dump(mode="json")["splits"] == index["splits"]
    assert not packed.warnings
    assert verify(out) == []


def test_rows_samples_and_source_files_agree(tmp_path):
    root, out = tmp_path / "raw", tmp_path / "set"
    records = noise_records(root, pids=12)
    _pack(root, out, records[::-1], noise_splits(12))
    ordered = sorted(records, key=lambda r: (r.pid, r.modality == "infrared", r.camid, r.number))
    found = samples(out)
    tar = (out / "noise-000000.tar").read_bytes()
    assert len(found) == len(ordered) == 48
    for row, (record, (key, extension, image, facts)) in enumerate(zip(ordered, found, strict=True)):
        assert key == f"{record.modality}_{record.pid:04d}_c{record.camid}_{record.number:04d}"
        assert extension == "jpg"
        assert image == record.path.read_bytes()
        assert facts == {
            "pid": record.pid,
            "camid": record.camid,
            "modality": str(record.modality),
            "split": "train" if record.pid <= 6 else "test",
            "source": str(record.path.relative_to(root)),
        }
        start, size = int(column(out, "offset")[row]), int(column(out, "size")[row])
        assert tar[start : start + size] == image
        got = {name: int(column(out, name)[row]) for name in ("pid", "camid", "number", "modality", "split", "shard")}
        code = 0 if record.modality == "visible" else 1
        split = 0 if record.pid <= 6 else 2
        assert got == {
            "pid": record.pid,
            "camid": record.camid,
            "number": record.number,
            "modality": code,
            "split": split,
            "shard": 0,
        }


def test_the_same_input_gives_the_same_bytes(tmp_path):
    _pack(tmp_path / "raw", tmp_path / "a")
    shutil.copytree(tmp_path / "raw", tmp_path / "elsewhere")
    for path in (tmp_path / "elsewhere").rglob("*.jpg"):
        os.utime(path, (1, 1))
        path.chmod(0o600)
    moved = [
        replace(r, path=tmp_path / "elsewhere" / r.path.relative_to(tmp_path / "raw"))
        for r in noise_records(tmp_path / "raw")
    ]
    _pack(tmp_path / "elsewhere", tmp_path / "b", moved[::-1])
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


def test_members_carry_no_time_and_no_owner(tmp_path):
    _pack(tmp_path / "raw", tmp_path / "set")
    with tarfile.open(tmp_path / "set/noise-000000.tar") as tar:
        facts = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.isreg()) for m in tar}
    assert facts == {(0, 0, 0, "", "", 0o444, True)}


def test_no_identity_is_cut_by_a_shard_border(tmp_path):
    root = tmp_path / "raw"
    data = image_bytes(0, "BMP", (400, 300))  # 0.34 MiB each, 1.4 MiB an identity
    records = []
    for record in noise_records(root, pids=5):
        path = record.path.with_suffix(".BMP")
        path.write_bytes(data)
        records.append(replace(record, path=path))
    small = [record for record in noise_records(root, pids=7) if record.pid > 5]
    _pack(root, tmp_path / "set", records + small, {"train": [1, 2], "test": [3, 4, 5, 6, 7]}, shard_mib=2)
    shards, pids = column(tmp_path / "set", "shard"), column(tmp_path / "set", "pid")
    assert [sorted(set(pids[shards == number].tolist())) for number in range(3)] == [[1, 2], [3, 4], [5, 6, 7]]
    assert int(shards.max()) == 2
    assert {extension for _, extension, _, _ in samples(tmp_path / "set")} == {"bmp", "jpg"}
    assert verify(tmp_path / "set") == []


def test_a_failure_in_the_middle_leaves_nothing(tmp_path, monkeypatch):
    records = noise_records(tmp_path / "raw")
    add, calls = shard_job.add_member, []

    def fail_at_the_ninth(*args):
        calls.append(args)
        if len(calls) == 9:
            raise RuntimeError("power cut")
        return add(*args)

    monkeypatch.setattr(shard_job, "add_member", fail_at_the_ninth)
    with pytest.raises(RuntimeError, match="power cut"):
        _pack(tmp_path / "raw", tmp_path / "sets" / "a", records)
    assert list((tmp_path / "sets").iterdir()) == []


@pytest.mark.parametrize("where", ["member", "index", "exchange", "rename"])
def test_a_failure_leaves_the_old_set_untouched(tmp_path, monkeypatch, where):
    records = noise_records(tmp_path / "raw")
    out = tmp_path / "sets" / "a"
    _pack(tmp_path / "raw", out, records)
    before = snapshot(out)
    error = OSError(28, "No space left on device")

    def fail(*args, **kwargs):
        raise error

    rename = os.rename
    if where == "member":
        monkeypatch.setattr(shard_job, "add_member", fail)
    elif where == "index":
        monkeypatch.setattr(writer, "write_text", fail)
    elif where == "exchange":
        monkeypatch.setattr(output, "_exchange", fail)
    else:  # a file system that cannot exchange: the old set has been moved aside by then
        monkeypatch.setattr(output, "_exchange", lambda *_: False)

        def fail_for_the_new(source, target):
            return fail() if source.name == "set" else rename(source, target)

        monkeypatch.setattr(output.os, "rename", fail_for_the_new)
    fewer = (tmp_path / "raw", out, records[4:], {"train": [2], "test": [3, 4]})
    with pytest.raises(OSError, match="No space left") as raised:
        _pack(*fewer, overwrite=True)
    assert snapshot(out) == before
    assert verify(out) == []
    # the finished shard is kept, and the note says so only if that is true
    assert (tmp_path / "sets" / "a.packing" / "shards").is_dir() == (where != "member")
    assert ["1 finished shard is kept" in note for note in getattr(raised.value, "__notes__", [])] == (
        [] if where == "member" else [True]
    )
    monkeypatch.undo()
    _pack(*fewer, overwrite=True)
    assert sorted(set(column(out, "pid").tolist())) == [2, 3, 4]
    assert [path.name for path in out.parent.iterdir()] == ["a"]


def test_a_killed_packing_leaves_nothing_that_looks_whole(tmp_path):
    noise_records(tmp_path / "raw")
    script = (
        "import os, sys, signal\nfrom pathlib import Path\n"
        "from shards import shard_job, writer\nfrom tests.shards.raw import noise_records, noise_splits\n"
        "raw, out = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "add, calls = shard_job.add_member, []\n"
        "def kill(*args):\n"
        "    calls.append(0)\n"
        "    if len(calls) == 9: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return add(*args)\n"
        "records = noise_records(raw)\nshard_job.add_member = kill\n"
        "writer.pack(records, out, 'noise', noise_splits(), root=raw, source='noise')\n"
    )
    out = tmp_path / "sets" / "a"
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "raw", out], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists()
    assert not list((tmp_path / "sets").rglob("index.json"))
    _pack(tmp_path / "raw", out)  # what the killed one left is not in the way
    assert verify(out) == []
    assert [path.name for path in out.parent.iterdir()] == ["a"]


def test_overwrite_replaces_the_whole_set(tmp_path):
    records = noise_records(tmp_path / "raw")
    out = tmp_path / "sets" / "a"
    _pack(tmp_path / "raw", out, records)
    with pytest.raises(InputError, match="--overwrite"):
        _pack(tmp_path / "raw", out, records)
    fewer = [record for record in records if record.pid != 1]
    _pack(tmp_path / "raw", out, fewer, {"train": [2], "test": [3, 4]}, overwrite=True)
    assert sorted(set(column(out, "pid").tolist())) == [2, 3, 4]
    assert [path.name for path in out.parent.iterdir()] == ["a"]
    assert verify(out) == []


def test_overwrite_never_deletes_what_is_no_shard_set(tmp_path):
    out = tmp_path / "home"
    out.mkdir()
    (out / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match=r"no index\.json"):
        _pack(tmp_path / "raw", out, overwrite=True)
    (out / "thesis.txt").unlink()
    _pack(tmp_path / "raw", out)
    (out / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match=r"thesis.txt"):
        _pack(tmp_path / "raw", out, overwrite=True)
    assert (out / "thesis.txt").read_text() == "years"


def test_the_output_may_be_an_empty_folder_but_no_file(tmp_path):
    (tmp_path / "empty").mkdir()
    _pack(tmp_path / "raw", tmp_path / "empty")
    assert verify(tmp_path / "empty") == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="got the file"):
        _pack(tmp_path / "raw", tmp_path / "file", overwrite=True)


BAD = {
    "empty": (b"", "empty file"),
    "text": (b"not an image at all", "not an image in a known format"),
    "header only": (image_bytes(1)[:60], "unreadable|not an image"),
    "half a JPEG": (image_bytes(1)[:-200], "truncated"),
    "half a PNG": (image_bytes(1, "PNG")[:-200], "truncated"),
    "half a BMP": (image_bytes(1, "BMP")[:-200], "truncated"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_image_stops_or_is_left_out(tmp_path, bad):
    data, reason = BAD[bad]
    root, out = tmp_path / "raw", tmp_path / "set"
    records = noise_records(root)
    records[5].path.write_bytes(data)
    with pytest.raises(InputError, match=rf"1/2/2\.jpg .*({reason}).*--skip-bad"):
        _pack(root, out, records)
    assert not out.exists()
    packed = _pack(root, out, records, skip_bad=True)
    index = json.loads((out / "index.json").read_text())
    assert index["images"] == 15
    assert index["left_out_count"] == 1
    assert index["left_out"][0]["path"] == str(records[5].path.relative_to(root))
    assert "1 images left out" in packed.summary()
    assert index["counts"]["train"]["visible"] == {"images": 3, "pids": 2}
    # the numbers of the others stay: the official draws are by number
    assert column(out, "number")[column(out, "pid") == 2].tolist() == [1, 1, 2]
    assert verify(out) == []


def test_a_missing_file_is_a_bad_image(tmp_path):
    records = noise_records(tmp_path / "raw")
    records[0].path.unlink()
    with pytest.raises(InputError, match=r"1/1/1\.jpg.*No such file"):
        _pack(tmp_path / "raw", tmp_path / "set", records)


def test_a_jpeg_with_bytes_after_its_end_is_whole(tmp_path):
    records = noise_records(tmp_path / "raw")
    records[0].path.write_bytes(image_bytes(1) + b"camera model 7")
    _pack(tmp_path / "raw", tmp_path / "set", records)
    assert verify(tmp_path / "set") == []


def test_nothing_but_bad_images_is_no_set(tmp_path):
    records = noise_records(tmp_path / "raw")
    for record in records:
        record.path.write_bytes(b"")
    with pytest.raises(InputError, match="16 images"):
        _pack(tmp_path / "raw", tmp_path / "set", records, skip_bad=True)
    assert not (tmp_path / "set").exists()


def test_a_list_may_name_identities_without_images(tmp_path):
    packed = _pack(tmp_path / "raw", tmp_path / "set", splits={"train": [1, 2, 70, 71], "test": [3, 4]})
    assert packed.warnings == ("2 identities of the list train have no images, the first is 70",)
    assert packed.index.splits["train"] == [1, 2]


def test_splits_without_identities_or_without_a_modality(tmp_path):
    root = tmp_path / "raw"
    records = noise_records(root)
    with pytest.raises(InputError, match="split val"):
        _pack(root, tmp_path / "set", records, {**noise_splits(), "val": [70]})
    for modality in Modality:
        one_sided = [r for r in records if r.split is Split.TRAIN or r.modality is modality]
        with pytest.raises(InputError, match=f"{modality.other} .*split test"):
            _pack(root, tmp_path / "set", one_sided)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": Split.TEST}, "split test to name pid 1"),
        ({"number": 2}, "one image for the key visible_0001_c1_0002"),
        ({"pid": -1}, "pid >= 0"),
        ({"number": 0}, "number >= 1"),
        ({"camid": 2**15}, "camid from 0 to 32767"),
    ],
)
def test_records_that_cannot_be_rows(tmp_path, change, message):
    records = noise_records(tmp_path / "raw")
    with pytest.raises(InputError, match=message):
        _pack(tmp_path / "raw", tmp_path / "set", [replace(records[0], **change), *records[1:]])


def test_images_lie_below_the_root_and_are_images(tmp_path):
    root, records = tmp_path / "raw", noise_records(tmp_path / "raw")
    outside = Record(write_image(tmp_path / "x.jpg", 1), 1, 1, Modality.VISIBLE, Split.TRAIN, 9)
    for path in (outside.path, root / ".." / "x.jpg"):
        with pytest.raises(InputError, match="below"):
            _pack(root, tmp_path / "set", [*records, replace(outside, path=path)])
    with pytest.raises(InputError, match="expected an image"):
        _pack(root, tmp_path / "set", [*records, replace(outside, path=root / "x.gif.exe")])
    with pytest.raises(InputError, match="--root"):
        _pack(root, tmp_path / "set", [])
    with pytest.raises(InputError, match="--shard-mib"):
        _pack(root, tmp_path / "set", records, shard_mib=0)


def test_a_set_without_splits_by_image(tmp_path):
    records = [replace(record, split=None) for record in noise_records(tmp_path / "raw")]
    _pack(
        tmp_path / "raw",
        tmp_path / "set",
        records,
        {"train_1": [1, 2], "test_1": [3, 4], "train_2": [3, 4], "test_2": [1, 2]},
    )
    assert np.all(column(tmp_path / "set", "split") == 255)
    assert {facts["split"] for *_, facts in samples(tmp_path / "set")} == {None}
    assert verify(tmp_path / "set") == []
