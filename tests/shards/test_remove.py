"""remove: nothing of the person stays, everything else stays as it was, and what cannot be done changes nothing."""

import errno
import json
import os
import re
import shutil

import numpy as np
import pytest

from shards import output
from shards.__main__ import main
from shards.inspect import open_set, summary_text
from shards.remove import remove
from shards.verify import verify
from shards.writer import pack
from tacaf.shard_set import read_index
from tacaf.vocabulary import COLUMNS, InputError
from tests.shards.raw import column, edited, noise_records, noise_splits, samples, snapshot

PIDS = 8
NAMES = {1: "Ann", 2: "Bob", 3: "Cem", 4: "7", 5: "Eva", 6: "Fay", 7: "Gus", 8: "Hal"}


def packed(root, out, without=(), **options):
    """Two identities a shard; `without` some of them."""
    records = noise_records(root, PIDS)
    for record in records[::4]:
        record.path.write_bytes(record.path.read_bytes() + bytes(2**19))
    splits = {name: [pid for pid in pids if pid not in without] for name, pids in noise_splits(PIDS).items()}
    records = [record for record in records if record.pid not in without]
    return pack(records, out, "noise", splits, root=root, source="noise", shard_mib=1, **options).folder


@pytest.fixture
def folder(tmp_path):
    return packed(tmp_path / "raw", tmp_path / "sets" / "set")


def index_of(folder):
    return json.loads((folder / "index.json").read_text())


def test_the_set_is_what_packing_without_the_person_gives(folder, tmp_path):
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("noise-*")}
    assert len(before) == 8
    removal = remove(folder, ["2"])
    assert (removal.pids, removal.images, removal.rewritten) == ([2], 4, 1)
    assert verify(folder) == []
    assert samples(folder) == samples(packed(tmp_path / "raw", tmp_path / "fresh", without=(2,)))
    after = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("noise-*")}
    assert {name for name in before if before[name] != after[name]} == {"noise-000000.tar", "noise-000000.idx"}
    index = index_of(folder)
    assert index["removed"] == {"pids": [2], "images": 4}
    assert index["splits"]["train"] == [1, 3, 4]
    assert index["counts"]["train"]["visible"] == {"images": 6, "pids": 3}
    assert index["images"] == 28 == len(column(folder, "pid"))
    assert [path.name for path in folder.parent.iterdir()] == ["set"]


def test_two_of_one_shard_take_the_shard_along(folder, tmp_path):
    """The other shards move up: the numbers have no gap. It is the very set that packing without them gives."""
    removal = remove(folder, ["4", "3"])
    assert removal.rewritten == 0
    assert sorted(path.name for path in folder.glob("*.tar")) == [f"noise-00000{n}.tar" for n in range(3)]
    fresh = packed(tmp_path / "raw", tmp_path / "fresh", without=(3, 4))
    ours, theirs = snapshot(folder), snapshot(fresh)
    index = json.loads(ours.pop("index.json"))
    assert index.pop("removed") == {"pids": [3, 4], "images": 8}
    assert index | {"seal": ""} == json.loads(theirs.pop("index.json")) | {"seal": ""}
    assert ours == theirs


def test_nothing_of_the_person_is_in_any_file(folder, tmp_path):
    gone = [row for row in samples(folder) if row[3]["pid"] == 6]
    traces = [
        trace for key, _, image, facts in gone for trace in (image[:1000], key.encode(), facts["source"].encode())
    ]

    def found() -> set[bytes]:
        return {trace for data in snapshot(folder.parent).values() for trace in traces if trace in data}

    assert len(found()) == 12
    remove(folder, ["6"])
    assert not found()


def test_all_the_others_stay_as_they_were(folder):
    before = {name: np.array(column(folder, name)) for name in COLUMNS}
    others = [row for row in samples(folder) if row[3]["pid"] not in (1, 8)]
    remove(folder, ["1", "8"])
    assert samples(folder) == others
    stays = ~np.isin(before["pid"], (1, 8))
    for name in ("pid", "camid", "modality", "split", "number", "size"):
        assert column(folder, name).tolist() == before[name][stays].tolist()
    tars = [path.read_bytes() for path in sorted(folder.glob("*.tar"))]
    for row, (_, _, image, _) in enumerate(others):
        start, size = int(column(folder, "offset")[row]), int(column(folder, "size")[row])
        assert tars[int(column(folder, "shard")[row])][start : start + size] == image


def test_removals_add_up(folder):
    remove(folder, ["1"])
    remove(folder, ["6", "6"])
    assert index_of(folder)["removed"] == {"pids": [1, 6], "images": 8}
    assert verify(folder) == []
    assert summary_text(open_set(folder)).splitlines()[0].endswith("; 8 images of 2 persons removed")
    with pytest.raises(InputError, match="got 1, "):
        remove(folder, ["1"])


def test_a_set_nobody_was_removed_from_does_not_mention_it(folder):
    assert "removed" not in index_of(folder)
    assert read_index(folder).removed is None


def test_names_serve_too(tmp_path):
    folder = packed(tmp_path / "raw", tmp_path / "set", pid_names=NAMES)
    assert remove(folder, ["Bob", "5"]).pids == [2, 5]
    assert "Bob" not in (folder / "index.json").read_text()
    assert set(index_of(folder)["pid_names"]) == {"1", "3", "4", "6", "7", "8"}
    before = snapshot(folder)
    with pytest.raises(InputError, match=r"pid 4 or 7.*pid=7 or name=7"):
        remove(folder, ["7"])
    assert snapshot(folder) == before
    assert remove(folder, ["pid=7"]).pids == [7]
    assert remove(folder, ["name=7"]).pids == [4]
    for word in ("Eva", "name=8", "pid=Hal", "pid=", "name=Bob"):
        with pytest.raises(InputError, match=rf"--pid .*got {re.escape(word.rpartition('=')[2])}"):
            remove(folder, [word])
    assert verify(folder) == []


@pytest.mark.parametrize(
    ("people", "message"),
    [
        (["77"], "got 77, which is not in the set"),
        (["1", "77"], "got 77, which is not in the set"),
        (["Ann"], "got Ann, which is not in the set"),
        (["-1"], "got -1, which"),
        (["5", "6", "7", "8"], "removing pid 5, 6, 7, 8 would leave no visible images in split test"),
        ([str(pid) for pid in range(1, 9)], "no visible images in split train"),
    ],
)
def test_what_cannot_be_removed_changes_nothing(folder, people, message):
    before = snapshot(folder.parent)
    with pytest.raises(InputError, match=message):
        remove(folder, people)
    assert snapshot(folder.parent) == before


def test_the_last_images_of_one_modality_stay(tmp_path):
    """Pid 1 alone has infrared images in train; without splits, in the whole set."""
    root = tmp_path / "raw"
    records = [r for r in noise_records(root) if r.modality == "visible" or r.pid in (1, 3)]
    pack(records, tmp_path / "a", "noise", noise_splits(), root=root, source="noise")
    with pytest.raises(InputError, match=r"pid 1 would leave no infrared .*split train"):
        remove(tmp_path / "a", ["1"])
    free = [type(r)(r.path, r.pid, r.camid, r.modality, None, r.number) for r in records if r.pid != 3]
    pack(free, tmp_path / "b", "noise", {}, root=root, source="noise")
    with pytest.raises(InputError, match=r"pid 1 would leave no infrared .*the set"):
        remove(tmp_path / "b", ["1"])
    assert remove(tmp_path / "b", ["2"]).images == 2


def test_named_lists_follow(tmp_path):
    """RegDB's kind: an image belongs to no single split."""
    records = [type(r)(r.path, r.pid, r.camid, r.modality, None, r.number) for r in noise_records(tmp_path / "raw")]
    splits = {"train_1": [1, 2], "test_1": [3, 4], "train_2": [2, 3], "test_2": [1, 4]}
    pack(records, tmp_path / "set", "noise", splits, root=tmp_path / "raw", source="noise")
    remove(tmp_path / "set", ["2"])
    assert index_of(tmp_path / "set")["splits"] == {"train_1": [1], "test_1": [3, 4], "train_2": [3], "test_2": [1, 4]}
    assert verify(tmp_path / "set") == []


def test_a_damaged_shard_is_not_given_a_new_hash(folder):
    tar = folder / "noise-000000.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 0xFF
    tar.write_bytes(data)
    before = snapshot(folder.parent)
    with pytest.raises(InputError, match=r"noise-000000\.tar: .*sha256"):
        remove(folder, ["1"])
    tar.write_bytes(data[:-512])
    with pytest.raises(InputError, match="has 1 problem"):
        remove(folder, ["5"])
    tar.write_bytes(data)
    assert snapshot(folder.parent) == before


def test_a_failure_leaves_the_old_set(folder, monkeypatch):
    before = snapshot(folder.parent)

    def full(*names):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output, "_exchange", full)
    with pytest.raises(OSError, match="No space left"):
        remove(folder, ["1"])
    assert snapshot(folder.parent) == before
    monkeypatch.setattr(output, "_exchange", lambda *names: False)  # a file system that cannot
    monkeypatch.setattr(output.os, "link", lambda *names: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    assert remove(folder, ["1"]).images == 4
    assert verify(folder) == []
    assert [path.name for path in folder.parent.iterdir()] == ["set"]


def test_leftovers_of_a_packing_go_too(folder, tmp_path):
    """They may show the removed person."""
    records = noise_records(tmp_path / "raw", PIDS)
    for record in records[::4]:
        record.path.write_bytes(record.path.read_bytes() + bytes(2**19))
    records[-1].path.write_bytes(b"")
    options = {"root": tmp_path / "raw", "source": "noise", "shard_mib": 1, "overwrite": True}
    with pytest.raises(InputError, match="empty file"):
        pack(records, folder, "noise", noise_splits(PIDS), **options)
    assert len(list((folder.parent / "set.packing/shards").glob("*.tar"))) == 3
    remove(folder, ["1"])
    assert [path.name for path in folder.parent.iterdir()] == ["set"]


def test_a_set_set_aside_by_a_kill_is_brought_back(folder):
    os.makedirs(folder.parent / "set.packing")
    os.rename(folder, folder.parent / "set.packing/old")
    assert remove(folder, ["1"]).images == 4
    assert verify(folder) == []


def test_the_command(folder, tmp_path, capsys):
    assert main(["remove", str(folder), "--pid", "1", "5"]) == 0
    assert "removed pid 1, 5; images removed: 8, left: 24; shards rewritten: 2 of 4" in (capsys.readouterr().out)
    for words in (["--pid", "1"], ["--pid"], []):
        assert main(["remove", str(folder), *words]) == 2
    assert main(["remove", str(tmp_path / "absent/set"), "--pid", "1"]) == 2
    assert not (tmp_path / "absent").exists()
    shutil.rmtree(folder / "columns")
    assert main(["remove", str(folder), "--pid", "2"]) == 2
    shown = capsys.readouterr().err
    assert [line[:6] for line in shown.splitlines()] == ["error:"] * 5


def test_packing_over_the_set_warns_of_who_comes_back(folder, tmp_path):
    remove(folder, ["1", "5"])
    records = [record for record in noise_records(tmp_path / "raw", PIDS) if record.pid != 5]
    splits = {"train": [1, 2, 3, 4], "test": [6, 7, 8]}
    again = pack(records, folder, "noise", splits, root=tmp_path / "raw", source="noise", overwrite=True)
    assert again.warnings == (
        "pid 1 was removed from the set that this one replaces, and is in it again; remove it from this set and from "
        "the raw folder",
    )
    assert pack(records, folder, "noise", splits, root=tmp_path / "raw", source="", overwrite=True).warnings == ()


def test_who_comes_back_is_a_problem(folder):
    remove(folder, ["1"])
    edited(folder, removed={"pids": [2], "images": 4})
    assert verify(folder, quick=True) == ["index.json: pid 2 is stated as removed, but has images; remove it again"]
