"""A shard as a tar: members with fixed headers, and the index text DALI's reader takes beside it."""

import io
import tarfile
from collections.abc import Sequence
from typing import NamedTuple

BLOCK = 512  # tar pads everything to this
INDEX_VERSION = "v1.2"  # of DALI's wds2idx text format


class Component(NamedTuple):
    """One member of a tar: extension, place of its data in bytes, name."""

    extension: str
    offset: int
    size: int
    name: str


def padded(size: int) -> int:
    """The bytes a member of `size` bytes takes, without its header."""
    return -(-size // BLOCK) * BLOCK


def add_member(tar: tarfile.TarFile, key: str, extension: str, data: bytes) -> Component:
    """Append `<key>.<extension>`; time 0 and owner 0 make the same bytes on every machine. `tar` is in USTAR format."""
    info = tarfile.TarInfo(f"{key}.{extension}")
    info.size, info.mode = len(data), 0o444
    offset = tar.offset + BLOCK
    tar.addfile(info, io.BytesIO(data))
    return Component(extension, offset, len(data), info.name)


def index_text(samples: Sequence[Sequence[Component]]) -> str:
    """The .idx file of a tar in the text format of DALI's wds2idx: `ext offset size name ...`, one line a sample."""
    lines = [f"{INDEX_VERSION} {len(samples)}"]
    lines += [" ".join(f"{c.extension} {c.offset} {c.size} {c.name}" for c in sample) for sample in samples]
    return "\n".join(lines) + "\n"


def idx_of(tar: str) -> str:
    """The name of DALI's index of a tar."""
    return tar.removesuffix(".tar") + ".idx"
