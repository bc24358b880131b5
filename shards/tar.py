"""The tar format of a shard: members with fixed headers, and the index file that DALI's reader needs."""

import io
import tarfile
from collections.abc import Sequence
from typing import NamedTuple

BLOCK = 512  # bytes; a tar's headers and padded members are multiples of it
INDEX_VERSION = "v1.2"  # of DALI's wds2idx text format


class Component(NamedTuple):
    """One member of a tar: its extension, the offset and size of its data in bytes, its name."""

    extension: str
    offset: int
    size: int
    name: str


def padded(size: int) -> int:
    """The bytes that a member of `size` bytes occupies, without its header."""
    return -(-size // BLOCK) * BLOCK


def add_member(tar: tarfile.TarFile, key: str, extension: str, data: bytes) -> Component:
    """Append the member `<key>.<extension>` to `tar`, which must be in USTAR format.

    Its time and owner are 0, so that the bytes are the same on every machine.
    """
    info = tarfile.TarInfo(f"{key}.{extension}")
    info.size, info.mode = len(data), 0o444
    offset = tar.offset + BLOCK
    tar.addfile(info, io.BytesIO(data))
    return Component(extension, offset, len(data), info.name)


def index_text(samples: Sequence[Sequence[Component]]) -> str:
    """The .idx file of a tar in the text format of DALI's wds2idx: a line `ext offset size name ...` per sample."""
    lines = [f"{INDEX_VERSION} {len(samples)}"]
    lines += [" ".join(f"{c.extension} {c.offset} {c.size} {c.name}" for c in sample) for sample in samples]
    return "\n".join(lines) + "\n"


def idx_of(tar: str) -> str:
    """The name of DALI's index of a tar."""
    return tar.removesuffix(".tar") + ".idx"
