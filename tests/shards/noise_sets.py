"""Sets of noise images in which every identity fills a shard, and packings of them that an error ends."""

from pathlib import Path

import pytest

from shards.sources.record import Record
from shards.writer import Packed, pack
from tacaf.vocabulary import InputError
from tests.shards.raw import noise_records, noise_splits

MIB = 2**20
PADDING = bytes(MIB)  # after the end of a JPEG: still a whole image, and an identity fills a shard of 1 MiB
ROOT = Path(__file__).parents[2]


def raw(root: Path, pids: int = 4) -> list[Record]:
    """Every identity fills a shard."""
    records = noise_records(root, pids)
    for record in records[::4]:
        record.path.write_bytes(record.path.read_bytes() + PADDING)
    return records


def pack_raw(root: Path, out: Path, records: list[Record], **options) -> Packed:
    pids = max(record.pid for record in records)
    return pack(records, out, "noise", noise_splits(pids), root=root, source="noise", **{"shard_mib": 1, **options})


def interrupted(root: Path, out: Path, records: list[Record]) -> dict[str, tuple[int, int]]:
    """A packing that an unreadable last image ended; the finished shards."""
    records[-1].path.write_bytes(b"")
    with pytest.raises(InputError, match="empty file"):
        pack_raw(root, out, records)
    assert not out.exists()
    return finished_shards(out)


def finished_shards(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every tar of a set, or waiting for the set: a rewritten file has others."""
    waiting = folder.with_name(folder.name + ".packing") / "shards"
    tars = [*folder.glob("*.tar"), *waiting.glob("*.tar")]
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in tars}
