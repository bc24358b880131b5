"""Damage anywhere in a set: verify reports every flipped bit, the trainer refuses it or reads the same."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shards.inspect import open_set
from shards.remove import remove
from shards.verify import verify
from shards.writer import pack
from tacaf.data.index import ShardIndex
from tacaf.documents import seal
from tacaf.shard_columns import column_bytes
from tacaf.vocabulary import InputError
from tests.shards.raw import edited, noise_records, noise_splits, snapshot

pytestmark = pytest.mark.slow  # thousands of damaged files

LONG = 20_000


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mutations")
    names = {1: "Ann", 2: "Bob", 3: "Cem", 4: "zoë"}
    options = {"root": folder / "raw", "source": "noise", "pid_names": names, "locations": {1: 1, 3: 1}}
    return pack(noise_records(folder / "raw"), folder / "set", "noise", noise_splits(), **options).folder


@pytest.fixture
def folder(sound, tmp_path) -> Path:
    return shutil.copytree(sound, tmp_path / "set")


def read(folder: Path) -> tuple:
    """Everything that a training takes from a set, the content of its shards aside."""
    index = ShardIndex.open(folder)
    columns = {name: values.tobytes() for name, values in index.columns.items()}
    return index.name, index.splits, index.locations, index.scales, index.shards, columns


def read_or_refused(folder: Path) -> tuple | None:
    try:
        return read(folder)
    except InputError:
        return None


def flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def check_flips(folder: Path, tries: int, seed: int) -> None:
    """Flip `tries` random bits, one at a time, in files chosen evenly, so that small ones are met as often as tars."""
    draw = np.random.default_rng(seed)
    whole, files = read(folder), snapshot(folder)
    missed = []
    for name in draw.choice(sorted(files), tries).tolist():
        bit = int(draw.integers(8 * len(files[name])))
        (folder / name).write_bytes(flipped(files[name], bit))
        problems = verify(folder, workers=1)
        if not problems or any("\n" in problem for problem in problems):
            missed.append((name, bit, problems))
        assert read_or_refused(folder) in (None, whole)
        (folder / name).write_bytes(files[name])
    assert not missed
    assert verify(folder) == []


def test_no_flipped_bit_is_missed(folder):
    check_flips(folder, 300, seed=0)


@pytest.mark.long
def test_no_flipped_bit_of_many_is_missed(folder):
    check_flips(folder, LONG, seed=1)


def test_every_bit_of_a_header_and_of_the_end_of_a_column(folder):
    path = folder / "columns/pid.npy"
    data = path.read_bytes()
    for bit in [*range(8 * 128), *range(8 * (len(data) - 2), 8 * len(data))]:
        path.write_bytes(flipped(data, bit))
        assert verify(folder, quick=True)
        assert read_or_refused(folder) is None


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: b"", lambda data: b"x"]
)
def test_no_other_length_of_a_file_is_missed(folder, change):
    for name, data in snapshot(folder).items():
        (folder / name).write_bytes(change(data))
        assert verify(folder), name
        if not name.endswith(".idx"):
            assert read_or_refused(folder) is None
        (folder / name).write_bytes(data)


def _replaced(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)

    return change


def _moved_and_linked(path: Path) -> None:
    outside = path.parents[len(path.parts) - 2 - path.parts.index("set")] / "outside"
    path.rename(outside)
    path.symlink_to(outside)


OTHER_KINDS = {
    "folder": _replaced(Path.mkdir),
    "pipe": _replaced(os.mkfifo),
    "nothing": _replaced(lambda path: None),
    "link to nothing": _replaced(lambda path: path.symlink_to("absent")),
    "link in a circle": _replaced(lambda path: path.symlink_to(path.name)),
    "link to a device": _replaced(lambda path: path.symlink_to("/dev/zero")),
    "link out of the set": _moved_and_linked,
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
@pytest.mark.parametrize("name", ["index.json", "columns", "columns/pid.npy", "noise-000000.tar", "noise-000000.idx"])
def test_another_kind_of_thing_in_a_files_place(folder, kind, name):
    if (kind, name) == ("folder", "columns"):
        return
    OTHER_KINDS[kind](folder / name)
    assert verify(folder)
    assert verify(folder, quick=True)
    for use in (open_set, lambda folder: remove(folder, ["Ann"])):
        with pytest.raises(InputError):
            use(folder)
    if not name.endswith(".idx"):  # which is DALI's own reader's
        assert read_or_refused(folder) is None


@pytest.mark.parametrize("name", ["more.tar", "README", ".hidden", "columns/more.npy", "noise-000000.tar.part", "nöße"])
@pytest.mark.parametrize("is_folder", [False, True])
def test_strangers_in_a_set_are_named(folder, name, is_folder):
    (folder / name).mkdir() if is_folder else (folder / name).write_bytes(b"x")
    (problem,) = verify(folder)
    assert problem.startswith(name)


# What somebody may write into an index whose seal is right -> the field or file that the error names.
def _shard(**changes) -> Callable[[dict], object]:
    return lambda values: values["shards"][0].update(changes)


INDEXES = {
    "no shards": (lambda v: v.update(shards=[]), "shards"),
    "a shard twice": (lambda v: v.update(shards=v["shards"] * 2, images=32), "shards"),
    "a shard elsewhere": (_shard(name="../x-000000.tar"), "shards.0.name"),
    "an absolute shard": (_shard(name="/etc/passwd"), "shards.0.name"),
    "a shard with a line feed": (_shard(name="noise-000000.tar\n"), "shards.0.name"),
    "a hash elsewhere": (_shard(sha256="../victim/project"), "shards.0.sha256"),
    "a column's hash elsewhere": (lambda v: v["columns"]["pid"].update(sha256="/x"), "columns.pid.sha256"),
    "a negative size": (_shard(bytes=-1), "shards.0.bytes"),
    "a size that is true": (_shard(bytes=True), "shards.0.bytes"),
    "a size of 400 digits": (_shard(bytes=10**400), "shards"),
    "a size that is a fraction": (_shard(bytes=1.5), "shards.0.bytes"),
    "too many images": (lambda v: v.update(images=17), "images"),
    "no images": (lambda v: v.update(images=0), "images"),
    "a huge number of images": (lambda v: (v.update(images=2**39), _shard(images=2**39)(v)), "columns/"),
    "images as text": (lambda v: v.update(images="16"), "images"),
    "null": (lambda v: v.update(splits=None), "splits"),
    "a list for a mapping": (lambda v: v.update(counts=[]), "counts"),
    "an unknown key": (lambda v: v.update(more=1), "more"),
    "a missing key": (lambda v: v.pop("splits"), "splits"),
    "another column": (lambda v: v["columns"].update(more=v["columns"]["pid"]), "columns"),
    "a missing column": (lambda v: v["columns"].pop("pid"), "columns"),
    "another type": (lambda v: v["columns"]["pid"].update(dtype="object"), "columns"),
    "pids out of order": (lambda v: v["splits"].update(train=[2, 1]), "splits.train"),
    "a pid twice": (lambda v: v["splits"].update(train=[1, 1]), "splits.train"),
    "a stranger's pid": (lambda v: v["splits"].update(train=[1, 2, 9]), "9"),
    "a pid less": (lambda v: v["splits"].update(train=[1]), "train"),
    "training on the test": (lambda v: v["splits"].update(train=[3, 4]), "train"),
    "another count": (lambda v: v["counts"]["train"]["visible"].update(images=5), "train"),
    "a missing count": (lambda v: v["counts"]["train"].pop("visible"), "train"),
    "another modality": (lambda v: v["counts"]["train"].update(depth={"images": 1, "pids": 1}), "counts.train"),
    "a split's name": (lambda v: (v["splits"].update({"../x": [1]}), v["counts"].update({"../x": {}})), "../x"),
    "too deep": (lambda v: v.update(source=json.loads("[" * 40 + "]" * 40)), "nested"),
    "a long text": (lambda v: v.update(source="x" * 5000), "source"),
    "another format": (lambda v: v.update(format="coco"), "format"),
    "another version": (lambda v: v.update(format_version=3), "format_version"),
    "no version": (lambda v: v.pop("format"), None),
    "removed who is there": (lambda v: v.update(removed={"pids": [1], "images": 1}, pid_names=None), "pid 1"),
    "removed who is named": (lambda v: v.update(removed={"pids": [1], "images": 1}), "pid_names"),
    "a scale without numbers": (lambda v: v.update(scales={"infrared": {"kind": "given"}}), "scales"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_a_hostile_index_is_one_clear_error(folder, name):
    change, field = INDEXES[name]
    edited(folder, change)
    if field is None:  # a default that says the same
        return
    with pytest.raises(InputError) as raised:
        ShardIndex.open(folder)
    problems = verify(folder, quick=True)
    assert field in str(raised.value)
    assert any(field in problem for problem in problems), problems


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"\xff", b"null", b"[]", b"1", b"{", b"[" * 100_000, b'{"a": 1, "a": 2}', b"\xef\xbb\xbf{}"),
        *(b'{"images": NaN}', b'{"images": ' + b"9" * 5000 + b"}"),
    ],
)
def test_a_file_that_is_no_index_is_one_clear_error(folder, text):
    (folder / "index.json").write_bytes(text)
    with pytest.raises(InputError, match=r"index\.json"):
        ShardIndex.open(folder)
    (problem,) = verify(folder)
    assert "index.json" in problem


def changed_column(folder: Path, name: str, change: Callable[[np.ndarray], object]) -> None:
    """A column with other values, and an index that states its hash, as who means harm would write it."""
    values = np.load(folder / f"columns/{name}.npy")
    change(values)
    write_column(folder, name, column_bytes(values))


def write_column(folder: Path, name: str, data: bytes) -> None:
    (folder / f"columns/{name}.npy").write_bytes(data)
    edited(folder, lambda values: values["columns"][name].update(sha256=hashlib.sha256(data).hexdigest()))


def _set(row: int, value: int) -> Callable[[np.ndarray], object]:
    return lambda values: values.__setitem__(row, value)


COLUMN_CHANGES = {
    "shard beyond": ("shard", _set(5, 7)),
    "shard before": ("shard", _set(5, -1)),
    "offset beyond": ("offset", _set(15, 2**40)),
    "offset at the end of numbers": ("offset", _set(15, 2**63 - 1)),
    "negative offset": ("offset", _set(3, -512)),
    "offset before": ("offset", _set(3, 512)),
    "size beyond": ("size", _set(15, 2**40)),
    "size at the end of numbers": ("size", _set(15, 2**63 - 1)),
    "size zero": ("size", _set(3, 0)),
    "size over the next": ("size", lambda values: values.__setitem__(0, values[0] + 2000)),
    "negative pid": ("pid", _set(0, -1)),
    "pid at the end of numbers": ("pid", _set(15, 2**63 - 1)),
    "pids out of order": ("pid", lambda values: values.__setitem__(slice(None), values[::-1].copy())),
    "another pid": ("pid", _set(slice(12, 16), 5)),
    "negative camid": ("camid", _set(0, -1)),
    "modality unknown": ("modality", _set(0, 2)),
    "modality 255": ("modality", _set(0, 255)),
    "modalities out of order": ("modality", _set(0, 1)),
    "split unknown": ("split", _set(0, 3)),
    "another split": ("split", _set(slice(0, 4), 2)),
    "no split": ("split", _set(slice(0, 4), 255)),
    "number zero": ("number", _set(0, 0)),
    "number twice": ("number", _set(1, 1)),
}


@pytest.mark.parametrize("name", COLUMN_CHANGES)
def test_columns_that_contradict_the_index_or_one_another(folder, name):
    column, change = COLUMN_CHANGES[name]
    changed_column(folder, column, change)
    with pytest.raises(InputError):
        ShardIndex.open(folder)
    assert verify(folder, quick=True)
    with pytest.raises(InputError):
        open_set(folder)


@pytest.mark.parametrize(
    "make",
    [
        lambda values: column_bytes(values.astype(">i8")),
        lambda values: column_bytes(values.reshape(4, 4)),
        lambda values: column_bytes(np.asfortranarray(values.reshape(4, 4))),
        lambda values: column_bytes(values.astype("int32")),
        lambda values: column_bytes(values[:-1]),
        lambda values: column_bytes(values) + b"\0",
        lambda values: column_bytes(values)[:-1],
        lambda values: b"\x93NUMPY\x02\0" + column_bytes(values)[8:],
        lambda values: b"\x93NUMPY\x01\0\xff\xff" + column_bytes(values)[10:],
        lambda values: column_bytes(values).replace(b"(16,)", b"(99999999999999999,)"),
        lambda values: column_bytes(values).replace(b"'<i8'", b"'|O'"),
        lambda values: b"PK\3\4" + column_bytes(values),
        lambda values: b"",
    ],
)
def test_a_column_of_another_form_with_the_right_hash(folder, make):
    write_column(folder, "pid", make(np.load(folder / "columns/pid.npy")))
    with pytest.raises(InputError, match=r"columns/pid\.npy"):
        ShardIndex.open(folder)
    assert any("columns/pid.npy" in problem for problem in verify(folder, quick=True))


def test_random_changes_of_values_are_one_clear_error_or_nothing(folder):
    """Types and values of an index swapped at random, sealed again."""
    draw = np.random.default_rng(0)
    original = json.loads((folder / "index.json").read_text())
    others = [None, True, -1, 0, 2**70, 1.5, "", "x" * 300, [], {}, [[]], {"a": 1}, "../x"]
    whole = read(folder)
    for _ in range(300):
        values = json.loads(json.dumps(original))
        place, key = values, draw.choice(sorted(values))
        while isinstance(place[key], dict | list) and len(place[key]) and draw.random() < 0.7:
            place = place[key]
            key = draw.choice(sorted(place)) if isinstance(place, dict) else int(draw.integers(len(place)))
        place[key] = others[draw.integers(len(others))]
        if values.get("seal") == original["seal"]:
            (folder / "index.json").write_text(seal(json.dumps(values | {"seal": "0" * 64})))
        else:
            (folder / "index.json").write_text(json.dumps(values))
        found = read_or_refused(folder)
        if found is not None:
            assert found[4:] == whole[4:]
        verify(folder, quick=True)


@pytest.mark.slow
def test_random_bytes_in_a_tar_whose_hash_agrees_never_end_in_a_traceback(folder):
    draw = np.random.default_rng(0)
    path = folder / "noise-000000.tar"
    data, offsets = path.read_bytes(), np.load(folder / "columns/offset.npy")
    for _ in range(200):
        changed = bytearray(data)
        header = int(draw.choice(offsets)) - 512
        for place in draw.integers(0, 512, draw.integers(1, 5)).tolist():
            changed[header + place] = int(draw.integers(256))
        block = bytearray(changed[header : header + 512])
        block[148:156] = b" " * 8
        changed[header + 148 : header + 156] = b"%06o\0 " % sum(block)  # as a tar's header must carry
        path.write_bytes(changed)
        edited(folder, lambda values: values["shards"][0].update(sha256=hashlib.sha256(path.read_bytes()).hexdigest()))
        assert all("\n" not in problem for problem in verify(folder, workers=1))


@pytest.mark.parametrize("missing", ["seal", "scales"])
def test_an_index_without_its_seal_or_its_scales_is_refused(folder, missing):
    values = json.loads((folder / "index.json").read_text())
    del values[missing]
    (folder / "index.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="hash" if missing == "seal" else missing):
        ShardIndex.open(folder)


def test_version_1_is_refused(folder):
    with pytest.raises(InputError, match="format_version 2, got 1"):
        ShardIndex.open(edited(folder, format_version=1))
