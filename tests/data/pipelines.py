"""Sets and indexes that the pipeline's tests change."""

import shutil
from dataclasses import replace

from tacaf.data.augment import AugmentConfig
from tacaf.data.index import ShardIndex
from tacaf.data.reader import ShardReader
from tacaf.data.storage import File
from tacaf.images import STD

LEVEL = 1 / (255 * STD.min())  # one of 256 levels after normalisation
SIZE = AugmentConfig(height=48, width=24, pad=4)


def with_bytes(index: ShardIndex, tmp_path, row: int, data: bytes) -> ShardIndex:
    """The same index with other bytes where this row's image lies."""
    shard = int(index.columns["shard"][row])
    path = shutil.copy(index.store.where(index.shards[shard].name), tmp_path / "broken.tar")
    offset, size = int(index.columns["offset"][row]), int(index.columns["size"][row])
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data[:size].ljust(size, b"\0"))
    shards = list(index.shards)
    shards[shard] = File(str(path), index.shards[shard].size, "")
    return replace(index, shards=shards)


def broken_set(index: ShardIndex, tmp_path, rows: list[int]) -> ShardIndex:
    """The set with these rows' images cut in their headers."""
    for row in rows:
        data = ShardReader(index).read(row).tobytes()
        folder = tmp_path / str(row)
        folder.mkdir()
        index = with_bytes(index, folder, row, data[:30])
    return index
