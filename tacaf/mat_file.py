"""Reading arrays of numbers and cells from MATLAB files of version 5 to 7, within limits.

Data sets keep identities and draws in such files. scipy reads every kind of array, but a damaged file can crash it with
a segmentation fault; this reader knows two kinds and is pure Python. Source: MathWorks' MAT-File Format, level 5.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tacaf.files import read_bytes, shown
from tacaf.vocabulary import InputError

MOST_BYTES = 2**26
MOST_UNPACKED = 2**28
MOST_ENTRIES = 2**20  # cells of one array
MOST_DEPTH = 8

_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CELL, _NUMBERS, _COMPLEX = 1, range(6, 16), 0x0800


class _Element(NamedTuple):
    kind: int
    body: bytes


def read_mat(path: Path, name: str) -> np.ndarray:
    """The array `name` of the file: numbers, or cells as an array of arrays (dtype object), in MATLAB's shape.

    Raises InputError for a file that cannot be read, is damaged, is of another version, or has no such array.
    """
    data = read_bytes(path, MOST_BYTES)
    try:
        order = {b"IM": "<", b"MI": ">"}.get(data[126:_HEADER_BYTES])
        if order is None:
            raise ValueError("not a MATLAB file of version 5 to 7; save it with -v7")
        for element in _elements(data[_HEADER_BYTES:], order):
            whole = _unpacked(element, order) if element.kind == _COMPRESSED else element
            if whole.kind == _MATRIX and _name_of(whole.body, order) == name:
                return _array(whole.body, order, 0)
        raise ValueError(f"there is no array {name}")
    except (ValueError, OverflowError, struct.error, zlib.error) as error:
        raise InputError(f"{shown(path)}: expected a MATLAB file with {name}, but: {shown(error)[:200]}") from None


def _elements(data: bytes, order: str) -> Iterator[_Element]:
    """The consecutive elements: a tag with kind and length, the body, and zeros up to a multiple of 8."""
    position = 0
    while position < len(data):
        kind, size = struct.unpack_from(order + "II", data, position)
        if kind >> 16:  # a short element: the length is in the tag's upper half, the body where the length would be
            kind, size, start, room = kind & 0xFFFF, kind >> 16, position + 4, 4
        else:
            start = position + 8
            room = size if kind == _COMPRESSED else size + -size % 8
        if size > room or start + size > len(data):
            raise ValueError("the file is truncated")
        yield _Element(kind, data[start : start + size])
        position = start + room


def _unpacked(element: _Element, order: str) -> _Element:
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(element.body, MOST_UNPACKED)
    if unpacker.unconsumed_tail:
        raise ValueError(f"more than {MOST_UNPACKED:,} bytes after unpacking")
    if not unpacker.eof:  # the checksum is at the end
        raise ValueError("the file is truncated")
    return next(_elements(data, order), _Element(0, b""))


def _name_of(matrix: bytes, order: str) -> str:
    parts = _elements(matrix, order)
    _, _, name = (next(parts, _Element(0, b"")) for _ in range(3))
    return name.body.decode("latin-1")


def _array(matrix: bytes, order: str, depth: int) -> np.ndarray:
    if not matrix:  # an empty cell
        return np.empty((0, 0))
    if depth > MOST_DEPTH:
        raise ValueError("nested too deeply")
    parts = _elements(matrix, order)
    flags, sizes, _ = (next(parts, _Element(0, b"")) for _ in range(3))
    word = struct.unpack_from(order + "I", flags.body)[0]
    shape = tuple(np.frombuffer(sizes.body, order + "i4").tolist())
    count = int(np.prod(shape, dtype=object))
    if len(shape) < 2 or min(shape) < 0 or count > MOST_UNPACKED:
        raise ValueError(f"an array of shape {shape}")
    kind = word & 0xFF
    if kind == _CELL:
        return _cells(parts, shape, count, order, depth)
    if kind not in _NUMBERS or word & _COMPLEX:
        raise ValueError("an array of neither numbers nor cells")
    stored = next(parts, _Element(0, b""))
    if stored.kind not in _STORED:
        raise ValueError(f"numbers stored as kind {stored.kind}")
    values = np.frombuffer(stored.body, order + _STORED[stored.kind])
    if len(values) != count:
        raise ValueError(f"{len(values)} numbers for shape {shape}")
    return values.astype(values.dtype.newbyteorder("=")).reshape(shape, order="F")


def _cells(parts: Iterator[_Element], shape: tuple[int, ...], count: int, order: str, depth: int) -> np.ndarray:
    if count > MOST_ENTRIES:
        raise ValueError(f"{count} cells")
    cells = np.empty(count, dtype=object)
    for number in range(count):
        cell = next(parts, None)
        if cell is None or cell.kind != _MATRIX:
            raise ValueError(f"{number} cells for shape {shape}")
        cells[number] = _array(cell.body, order, depth + 1)
    return cells.reshape(shape, order="F")
