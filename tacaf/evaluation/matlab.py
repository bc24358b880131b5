"""A cell array out of a MATLAB file of version 5, 6 or 7: what `rand_perm_cam.mat` needs, and nothing else.

SciPy reads all of the format, and a few changed bytes make it read memory that is not its own: a damaged file could end
the process without a word. Source: "MAT-File Format", MathWorks; each element is a type, a length and that many bytes.
"""

import math
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

MOST_BYTES = 2**28  # of one variable, unpacked
_TEXT = 128  # the file's header: text, version, and "IM" or "MI" for the order of bytes
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED = 14, 15
_CELL, _NUMERIC = 1, range(6, 16)  # classes of arrays
_COMPLEX = 0x800
_MOST_CELLS = 2**20


class _Element(NamedTuple):
    kind: int
    data: memoryview


def read_cells(data: bytes, name: str) -> np.ndarray:
    """The cell array of that name: an object array whose entries are numbers [rows, columns] or such arrays again.

    ValueError for a file without it, a damaged one, and for anything else in its cells.
    """
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None or len(data) < _TEXT:
        raise ValueError("not a MATLAB file of version 5 to 7")
    for element in _elements(memoryview(data)[_TEXT:], order):
        if element.kind == _COMPRESSED:
            element = next(_elements(memoryview(_unpack(element.data)), order), _Element(0, memoryview(b"")))
        if element.kind == _MATRIX and _name(element.data, order) == name:
            found = _array(element.data, order, depth=2)
            if found.dtype != object:
                raise ValueError(f"{name} is not a cell array")
            return found
    raise ValueError(f"no {name}")


def _unpack(packed: memoryview) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(packed, MOST_BYTES + 1)
    except zlib.error as error:
        raise ValueError(f"a damaged variable ({error})") from None
    if len(unpacked) > MOST_BYTES:
        raise ValueError(f"a variable of more than {MOST_BYTES:,} bytes")
    if not unpacker.eof:  # with the checksum at its end
        raise ValueError("a variable that is cut off")
    return unpacked


def _elements(data: memoryview, order: str) -> Iterator[_Element]:
    """The elements in these bytes, one after the other."""
    place = 0
    while place < len(data):
        if len(data) - place < 8:
            raise ValueError("it is cut off")
        kind, size = (int(word) for word in np.frombuffer(data[place : place + 8], f"{order}u4"))
        start, end = place + 8, place + 8 + size
        if kind >> 16:  # a small element: both words in one, the bytes in the other
            kind, size = kind & 0xFFFF, kind >> 16
            start, end = place + 4, place + 4 + size
            if size > 4:
                raise ValueError("a small element of more than 4 bytes")
            place += 8
        else:
            place = end if kind == _COMPRESSED else end + -size % 8
        if end > len(data):
            raise ValueError("it is cut off")
        yield _Element(kind, data[start:end])


def _name(matrix: memoryview, order: str) -> str:
    parts = _elements(matrix, order)
    names = [element.data for _, element in zip(range(3), parts, strict=False)][2:]
    return bytes(names[0]).decode("ascii", "replace") if names else ""


def _array(matrix: memoryview, order: str, depth: int) -> np.ndarray:
    """The array in the bytes of a matrix element; of size 0 where it has none."""
    if not len(matrix):
        return np.empty((0, 0))
    flags, sides, _, *parts = list(_elements(matrix, order))
    (word, _) = np.frombuffer(flags.data, f"{order}u4")
    shape = tuple(int(side) for side in np.frombuffer(sides.data, f"{order}i4"))
    kind, count = int(word) & 0xFF, math.prod(shape)
    if min(shape, default=-1) < 0 or len(shape) > 4 or count > _MOST_CELLS:
        raise ValueError(f"an array of shape {list(shape)[:9]}")
    if kind == _CELL and depth and len(parts) == count and all(part.kind == _MATRIX for part in parts):
        cells = np.empty(count, object)
        for place, part in enumerate(parts):
            cells[place] = _array(part.data, order, depth - 1)
        return cells.reshape(shape, order="F")
    if kind in _NUMERIC and not word & _COMPLEX and len(parts) == 1 and parts[0].kind in _NUMBERS:
        numbers = np.frombuffer(parts[0].data, order + _NUMBERS[parts[0].kind])
        if numbers.size == count:
            return numbers.astype(numbers.dtype.newbyteorder("=")).reshape(shape, order="F")
    raise ValueError(f"an array of class {kind} that does not hold {count} cells or real numbers")
