"""Reading named arrays from untrusted .npz files: headers are checked against the file before memory is allocated."""

import io
import math
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from tacaf.files import reason_of, shown
from tacaf.vocabulary import InputError

CURE = "write it again with numpy.savez"
MOST_EXPANSION = 200  # compression ratio of a large member; columns of equal words compress better, but are small
FREELY_EXPANDED = 1 << 28  # bytes
MOST_MEMBERS = 1000
_MOST_HEADER = 1 << 16
_CHUNK = 1 << 22
_KINDS = "biufcSUMm"  # no objects, which would be unpickled, and no records
_DAMAGE = (ValueError, OSError, EOFError, KeyError, struct.error, zipfile.BadZipFile, zlib.error)
# Damage to a zip's directory, and features that Python's reader does not support (encryption, compression methods).
_ODD = (RuntimeError, NotImplementedError, MemoryError, OverflowError, TypeError, IndexError, SyntaxError)


class _Header(NamedTuple):
    """The header of an array."""

    dtype: np.dtype
    shape: tuple[int, ...]
    columns_first: bool
    bytes: int  # of the header itself


def read_arrays(path: Path, names: Sequence[str], large_bytes: int) -> dict[str, np.ndarray]:
    """These arrays of an .npz, in native byte order.

    The first of `names` is returned as a numpy.memmap if it is larger than `large_bytes` and stored uncompressed; its
    checksum is checked too. Raises InputError, naming file and array, before memory is allocated for a wrong file.
    """
    _refuse_other_files(path)
    try:
        with zipfile.ZipFile(path) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns about old and unusual headers
            members = _members(archive, names, path)
            headers = {name: _header(archive, members[name], path) for name in names}
            return {
                name: _array(archive, members[name], headers[name], path, name == names[0], large_bytes)
                for name in names
            }
    except (*_DAMAGE, *_ODD) as error:
        reason = shown(" ".join(str(error).split()) or type(error).__name__)[:200]
        raise InputError(f"{shown(path)}: expected a readable .npz, got: {reason}; {CURE}") from None


def _refuse_other_files(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"the feature file {shown(path)} does not exist or is not a file; check the path")
    try:
        with path.open("rb") as file:
            begin = file.read(6)
    except OSError as error:
        raise InputError(f"cannot read {shown(path)}: {reason_of(error)}") from None
    if begin == b"\x93NUMPY":
        raise InputError(f"{shown(path)}: expected an .npz of several arrays, got one array (.npy); use numpy.savez")
    if begin[:2] != b"PK":
        raise InputError(f"{shown(path)}: this is not an .npz file; {CURE}")


def _members(archive: zipfile.ZipFile, names: Sequence[str], path: Path) -> dict[str, zipfile.ZipInfo]:
    """The member of each array. Raises InputError if one is missing, repeated, encrypted, or of an implausible size."""
    members = archive.infolist()
    if len(members) > MOST_MEMBERS:
        raise InputError(f"{shown(path)}: expected at most {MOST_MEMBERS} arrays, got {len(members)}; {CURE}")
    filenames = [member.filename for member in members]
    missing = [name for name in names if f"{name}.npy" not in filenames]
    if missing:
        raise InputError(
            f"{shown(path)}: expected the arrays {', '.join(names)} (members such as {names[0]}.npy), got "
            f"{shown(', '.join(filenames))[:300] or 'none'}; add {', '.join(missing)}"
        )
    for member in members:
        if member.filename.removesuffix(".npy") in names:
            problem = _problem(member, filenames.count(member.filename), path)
            if problem:
                raise InputError(f"{shown(path)}, {shown(member.filename)}: {problem}; {CURE}")
    return {name: archive.getinfo(f"{name}.npy") for name in names}


def _problem(member: zipfile.ZipInfo, times: int, path: Path) -> str | None:
    size, packed = member.file_size, member.compress_size
    if times > 1:
        return f"the array occurs {times} times"
    if member.flag_bits & 1:
        return "the array is encrypted"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"compression method {member.compress_type} is not one that numpy writes"
    if packed > path.stat().st_size or (member.compress_type == zipfile.ZIP_STORED and packed != size):
        return f"the archive states {size:,} bytes, more than it contains"
    if size > max(FREELY_EXPANDED, MOST_EXPANSION * packed):
        return f"the archive states that {packed:,} bytes expand to {size:,}"
    return None


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> _Header:
    """The header of an array. Raises InputError unless it describes a plain array of exactly the member's size."""
    with archive.open(member) as file:
        header = _parse_header(file)
    where = f"{shown(path)}, {member.filename}"
    if header.dtype.hasobject:
        raise InputError(
            f"{where}: expected an array without pickled objects, got {header.dtype}; store numbers or text"
        )
    if header.dtype.kind not in _KINDS or header.dtype.subdtype is not None:
        raise InputError(f"{where}: expected numbers or text, got {shown(header.dtype)[:60]}; store plain arrays")
    if header.bytes + math.prod(header.shape) * header.dtype.itemsize != member.file_size:
        raise InputError(
            f"{where}: expected the size of {list(header.shape)} {header.dtype}, which the header describes, got"
            f" {member.file_size:,} bytes with the header; {CURE}"
        )
    return header


def _parse_header(file: IO[bytes]) -> _Header:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"version {version} of the .npy format")
    size = file.read(2 if version == (1, 0) else 4)
    length = int.from_bytes(size, "little")
    if length > _MOST_HEADER:
        raise ValueError(f"a header of {length:,} bytes")
    text = io.BytesIO(size + file.read(length))
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = read(text)
    if len(shape) > 8 or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"a shape {str(shape)[:60]}")
    return _Header(dtype, shape, columns_first, 8 + len(size) + length)


def _array(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, header: _Header, path: Path, may_map: bool, large_bytes: int
) -> np.ndarray:
    large = may_map and member.compress_type == zipfile.ZIP_STORED and member.file_size > large_bytes
    if large and header.dtype.isnative:
        return _mapped(archive, member, header, path)
    with archive.open(member) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        file.read(1)  # reaching the end makes zipfile compare the checksum
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _mapped(archive: zipfile.ZipFile, member: zipfile.ZipInfo, header: _Header, path: Path) -> np.ndarray:
    """A large array, memory-mapped from the file."""
    with archive.open(member) as file:
        while file.read(_CHUNK):  # reads everything, so that zipfile compares the checksum
            pass
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)  # the two lengths that end a zip entry's header of 30 bytes
        file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
        begin = file.tell() + header.bytes
    return np.memmap(path, header.dtype, "r", begin, header.shape, "F" if header.columns_first else "C")
