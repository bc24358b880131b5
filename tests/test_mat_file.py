"""MATLAB files: what scipy writes is read as scipy reads it; whatever is damaged is one error and no crash."""

import io
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from tacaf.mat_file import read_mat
from tacaf.vocabulary import InputError


def cells(*values) -> np.ndarray:
    found = np.empty((len(values), 1), dtype=object)
    for number, value in enumerate(values):
        found[number, 0] = value
    return found


NUMBERS = [np.array([[1, 2, 300]], dtype=kind) for kind in ("u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")] + [
    np.arange(6, dtype=np.uint8).reshape(2, 3),
    np.zeros((0, 0)),
    np.arange(24.0).reshape(2, 3, 4),
    np.array([[7]]),
]
DRAWS = cells(cells(np.arange(20, dtype=np.uint8).reshape(10, 2), np.zeros((0, 0))), cells(np.array([[1.0, 2.0]])))


def same(one: np.ndarray, other: np.ndarray) -> bool:
    if one.dtype == object:
        return one.shape == other.shape and all(same(a, b) for a, b in zip(one.ravel(), other.ravel(), strict=True))
    return one.dtype == other.dtype and np.array_equal(one, other)


def written(path: Path, value: np.ndarray, packed: bool) -> Path:
    savemat(path, {"before": np.eye(2), "x": value, "after": "text"}, do_compression=packed)
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("value", [*NUMBERS, DRAWS], ids=lambda value: f"{value.dtype}{value.shape}")
def test_numbers_and_cells_are_what_scipy_reads(tmp_path, value, packed):
    path = written(tmp_path / "a.mat", value, packed)
    assert same(read_mat(path, "x"), loadmat(path)["x"])


@pytest.mark.parametrize("value", ["text", {"a": 1}, np.array([[1 + 2j]])], ids=["text", "structure", "complex"])
def test_other_kinds_are_refused(tmp_path, value):
    savemat(tmp_path / "a.mat", {"x": value})
    with pytest.raises(InputError, match=r"a\.mat"):
        read_mat(tmp_path / "a.mat", "x")


@pytest.mark.parametrize("format", ["4", "5"])
def test_another_version_and_another_name(tmp_path, format):
    savemat(tmp_path / "a.mat", {"x": np.eye(2)}, format=format)
    with pytest.raises(InputError, match=r"a\.mat.* x" if format == "4" else r"no array y"):
        read_mat(tmp_path / "a.mat", "x" if format == "4" else "y")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("value", [DRAWS, NUMBERS[0]], ids=["cells", "numbers"])
def test_damage_is_one_error_or_other_numbers(tmp_path, value, packed):
    path = written(tmp_path / "a.mat", value, packed)
    data, draw = path.read_bytes(), np.random.default_rng(0)
    for number in range(1500):
        changed = bytearray(data)
        for place in draw.integers(len(data), size=draw.integers(1, 4)).tolist():
            changed[place] = int(draw.integers(256))
        path.write_bytes(changed if number % 5 else changed[: draw.integers(len(data))])
        with suppress(InputError):
            read_mat(path, "x")


@pytest.mark.slow
def test_what_unpacks_to_very_much_is_refused(tmp_path):
    path = written(tmp_path / "a.mat", np.eye(2), False)
    head = path.read_bytes()[:128]
    packer, bomb = zlib.compressobj(), io.BytesIO()
    for _ in range(300):
        bomb.write(packer.compress(bytes(2**20)))
    bomb.write(packer.flush())
    body = bomb.getvalue()
    path.write_bytes(head + (15).to_bytes(4, "little") + len(body).to_bytes(4, "little") + body)
    with pytest.raises(InputError, match="after unpacking"):
        read_mat(path, "x")
