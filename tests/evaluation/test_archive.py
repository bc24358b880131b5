"""Feature files from anywhere: whole ones come back as they were, the others are one error with file and array."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from perf.attacks.mutations import damaged
from tacaf.evaluation import features as module
from tacaf.evaluation.features import ARRAYS, FeatureSet, load_features
from tacaf.vocabulary import InputError

N = 12


def arrays() -> dict[str, np.ndarray]:
    dice = np.random.default_rng(0)
    return {
        "features": dice.normal(size=(N, 5)).astype(np.float32),
        "pid": np.arange(N) // 2,
        "camid": np.arange(N) % 2,
        "modality": np.array(["visible", "infrared"] * (N // 2)),
        "number": np.ones(N, np.int64),
    }


def npy(header: object, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """A member with any header."""
    text = header if isinstance(header, bytes) else repr(header).encode() + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", len(text)) + text + data


def described(shape: object, descr: object = "<f4", order: object = False) -> dict:
    return {"descr": descr, "fortran_order": order, "shape": shape}


def stored(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def write(path: Path, kind: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    """The arrays of a sound file, with these members in place of their own."""
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, array in arrays().items():
            archive.writestr(f"{name}.npy", members.get(name, stored(array)))
    return path


def refused(path: Path, says: str = ".") -> str:
    with pytest.raises(InputError, match=says) as raised:
        load_features(path)
    assert path.name in str(raised.value)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("change", ["none", "float16", "float64", "big endian", "columns first", "bytes", "int8"])
def test_sound_files_of_all_kinds_are_read(tmp_path, save, change):
    values = arrays()
    expected = values["features"]
    values |= {
        "none": {},
        "float16": {"features": expected.astype(np.float16)},
        "float64": {"features": expected.astype(np.float64)},
        "big endian": {"features": expected.astype(">f4"), "pid": values["pid"].astype(">i4")},
        "columns first": {"features": np.asfortranarray(expected)},
        "bytes": {"modality": values["modality"].astype("S")},
        "int8": {"pid": values["pid"].astype(np.int8), "camid": values["camid"].astype(np.uint64)},
    }[change]
    save(tmp_path / "F.npz", **values, more=np.zeros(3))
    found = load_features(tmp_path / "F.npz")
    np.testing.assert_allclose(found.features, expected, rtol=1e-3)
    assert found.features.dtype.isnative
    assert found.pid.tolist() == (np.arange(N) // 2).tolist()
    assert found.modality.tolist() == [0, 1] * (N // 2)


MEMBERS = {
    "no array": b"",
    "words": b"hello",
    "cut header": npy(described((N, 5)))[:20],
    "22 GiB": npy(described((N, 492_131_669)), bytes(60)),
    "2**62 values": npy(described((2**62, 4)), bytes(60)),
    "negative": npy(described((-N, 5)), bytes(60)),
    "fractions": npy(described((N, 5.0)), bytes(60)),
    "a shape of truth": npy(described((True, 60)), bytes(240)),
    "no shape": npy(described(3), bytes(240)),
    "many sides": npy(described((1,) * 40), bytes(4)),
    "short": npy(described((N, 5)), bytes(239)),
    "long": npy(described((N, 5)), bytes(241)),
    "objects": stored(np.array([None] * N, dtype=object)),
    "objects that say they are few": npy(described((N, 5), "|O"), bytes(480)),
    "records": stored(np.zeros(N, dtype=[("a", "<f4"), ("b", "<f4")])),
    "sub-arrays": npy(described((N,), ("<f4", (5,))), bytes(240)),
    "long doubles": stored(np.ones((N, 5), np.longdouble)),
    "complex": stored(np.ones((N, 5), np.complex64)),
    "truth": stored(np.ones((N, 5), bool)),
    "dates": stored(np.ones((N, 5), "M8[s]")),
    "version 9": npy(described((N, 5)), bytes(240), (9, 0)),
    "a header of 64 MiB": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**26) + b" " * 100,
    "a header that is code": npy(b"__import__('os').system('echo run')\n", bytes(240)),
    "a deep header": npy(b"(" * 9000 + b")" * 9000 + b"\n", bytes(240)),
    "a header of bytes": npy(b"\xff\xfe\n", bytes(240)),
    "one number": stored(np.float32(3)),
    "flat": stored(np.ones(N, np.float32)),
}


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("case", MEMBERS)
def test_a_member_that_is_no_array_of_numbers_is_refused(tmp_path, case, kind):
    refused(write(tmp_path / "F.npz", kind, features=MEMBERS[case]))


@pytest.mark.parametrize("name", ARRAYS[1:])
@pytest.mark.parametrize("case", ["words", "22 GiB", "objects", "records", "short", "one number"])
def test_the_facts_are_read_as_carefully(tmp_path, case, name):
    refused(write(tmp_path / "F.npz", **{name: MEMBERS[case]}))


def test_numbers_beyond_64_bits_with_sign_are_refused(tmp_path):
    path = write(tmp_path / "F.npz", pid=stored(np.full(N, 2**63 + 5, np.uint64)))
    assert "pid" in refused(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "F.npz"
    np.save(tmp_path / "F.npy", arrays()["features"])
    for content, says in [
        ((tmp_path / "F.npy").read_bytes(), "one array"),
        (b"", "not an .npz"),
        (b"hello", "not an .npz"),
        (b"PK\x05\x06" + bytes(18), "add features"),
    ]:
        path.write_bytes(content)
        refused(path, says)
    refused(tmp_path / "none.npz", "does not exist or is not a file")
    (tmp_path / "folder.npz").mkdir()
    refused(tmp_path / "folder.npz", "does not exist or is not a file")


def test_members_without_their_suffix_or_twice_are_refused(tmp_path):
    path = tmp_path / "F.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays().items():
            archive.writestr(name, stored(array))
    refused(path, "add features")
    write(path)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("pid.npy", stored(np.zeros(N, np.int64)))
    refused(path, r"pid\.npy: the array occurs 2 times")


@pytest.mark.parametrize("place", [6, 8])
def test_an_encrypted_or_strangely_compressed_member_is_refused(tmp_path, place):
    """Flags and method, in the central directory and in the local header of the first member."""
    path = write(tmp_path / "F.npz")
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    data[place] = data[central + place + 2] = 1 if place == 6 else 99
    path.write_bytes(data)
    refused(path, "encrypted" if place == 6 else "compression method 99")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("tacaf.evaluation.archive.FREELY_EXPANDED", 2**20)
    rows = 2**19
    path = write(tmp_path / "F.npz", zipfile.ZIP_DEFLATED, features=stored(np.zeros((rows, 5), np.float32)))
    refused(path, r"features\.npy: .* expand to")


def test_a_size_that_the_archive_does_not_hold_is_refused(tmp_path):
    path = write(tmp_path / "F.npz", features=npy(described((N, 2**30)), bytes(240)))
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    for at in (central + 20, central + 24):  # compressed and whole size
        data[at : at + 4] = struct.pack("<I", 2**32 - 2)
    path.write_bytes(data)
    refused(path, "more than it contains")


@pytest.mark.parametrize(("count", "seed"), [(400, 0), pytest.param(10_000, 1, marks=pytest.mark.long)])
@pytest.mark.parametrize("large", [False, True])
def test_a_damaged_file_is_refused_or_the_same(tmp_path, monkeypatch, large, count, seed):
    """Memory-mapped features too."""
    monkeypatch.setattr(module, "LARGE_BYTES", 100 if large else 2**30)
    np.savez(tmp_path / "whole.npz", **arrays())
    whole, path = load_features(tmp_path / "whole.npz"), tmp_path / "F.npz"
    assert isinstance(whole.features, np.memmap) == large
    unchanged = 0
    for what, data in damaged((tmp_path / "whole.npz").read_bytes(), count, seed):
        path.write_bytes(data)
        try:
            found = load_features(path)
        except InputError:
            continue
        unchanged += 1
        assert same(found, whole), what
    assert unchanged < count / 2


def same(one: FeatureSet, other: FeatureSet) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ARRAYS)
