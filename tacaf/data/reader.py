"""Encoded images by offset: row of the index in, bytes of the tar out."""

import mmap

import numpy as np

from tacaf.data.index import ShardIndex
from tacaf.vocabulary import InputError

# First bytes of the formats a set may hold. A member that starts otherwise was not read at the right place.
SIGNATURES = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png", b"BM": "bmp"}


class ShardReader:
    """Reads from memory-mapped tars, opened on first use. Can be pickled: the maps stay behind."""

    def __init__(self, index: ShardIndex) -> None:
        self.index = index
        self._maps: dict[int, mmap.mmap] = {}

    def __getstate__(self) -> dict:
        return {"index": self.index, "_maps": {}}

    def read(self, row: int) -> np.ndarray:
        """The encoded image of a row as uint8 [bytes]. InputError names shard, key and what came instead."""
        columns = self.index.columns
        shard, offset, size = (int(columns[name][row]) for name in ("shard", "offset", "size"))
        data = self._map(shard)[offset : offset + size]
        if len(data) != size or not data.startswith(tuple(SIGNATURES)):
            raise InputError(
                f"{self.where(row)}: expected an image of {size} bytes at offset {offset}"
                f" ({', '.join(SIGNATURES.values())}), got {len(data)} bytes starting with"
                f" {data[:4].hex() or 'nothing'}; run python -m shards verify"
            )
        return np.frombuffer(data, dtype=np.uint8)

    def where(self, row: int) -> str:
        """Shard and key of a row, for messages."""
        return f"{self.index.shards[int(self.index.columns['shard'][row])]}, sample {self.index.key(row)}"

    def _map(self, shard: int) -> mmap.mmap:
        if shard not in self._maps:
            with self.index.shards[shard].open("rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[shard]
