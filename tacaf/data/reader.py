"""Images by offset: row of the index in, an image file out that DALI decodes as everybody else does.

That is the file in the tar, as it is, but for grey of more than 8 bits, which goes through the set's scale, and for the
formats that DALI does not decode alike.
"""

import mmap
import os
import time
from collections import OrderedDict
from typing import BinaryIO

import numpy as np

from tacaf.data.index import ShardIndex
from tacaf.data.storage import CacheFullError
from tacaf.images import GreyScale, ImageError, decode, decode_problem, for_dali
from tacaf.vocabulary import InputError, Modality

OPEN_SHARDS = 256  # mapped at a time: far below the files a process may open
WAIT_FOR_ROOM_S = 60.0  # in a full cache, for other processes of the node to leave the window before


class BadSampleError(InputError):
    """An image that cannot be used. `row` is its place in the index."""

    def __init__(self, row: int, text: str) -> None:
        super().__init__(text)
        self.row = row


class ShardReader:
    """Reads from memory-mapped tars, opened on first use. Can be pickled: the maps stay behind."""

    def __init__(self, index: ShardIndex) -> None:
        self.index = index
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()
        self._as_it_is = np.zeros(len(index), dtype=bool)  # rows whose files are known to need no change
        self._asked_for_room = False

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_maps": OrderedDict(), "_as_it_is": np.zeros(len(self.index), dtype=bool)}

    def read(self, row: int) -> np.ndarray:
        """The image of a row as a file for DALI, uint8 [bytes]. BadSampleError names shard, key and what came instead.

        Its pixels have 8 bits: grey values of more went through the set's scale, if it has one.
        """
        data = self.original(row)
        if not self._as_it_is[row]:
            try:
                given = for_dali(data, self.scale_of(row))
            except ImageError as problem:
                raise BadSampleError(row, self._undecodable(row, str(problem))) from None
            self._as_it_is[row] = given is data  # the header was read, once: decoding is the pipeline's
            data = given
        return np.frombuffer(data, dtype=np.uint8)

    def original(self, row: int) -> bytes:
        """The file that was packed. BadSampleError if the shard ends before it."""
        shard, offset, size = self._place(row)
        data = self._map(shard)[offset : offset + size]
        if len(data) != size:
            raise BadSampleError(row, self._undecodable(row, f"{len(data)} bytes"))
        return data

    def pixels(self, row: int) -> np.ndarray:
        """The image of a row as everybody sees it, RGB uint8 [H, W, 3]. BadSampleError as `read`."""
        try:
            return decode(self.original(row), self.scale_of(row))
        except ImageError as problem:
            raise BadSampleError(row, self._undecodable(row, str(problem))) from None

    def scale_of(self, row: int) -> GreyScale | None:
        """How the row's grey values become 8 bits, if they have more."""
        return self.index.scales.get(list(Modality)[int(self.index.columns["modality"][row])])

    def check(self, row: int) -> None:
        """Decode the image with another library than the pipeline's. BadSampleError says what is wrong with it."""
        problem = decode_problem(self.read(row).tobytes())
        if problem:
            raise BadSampleError(row, self._undecodable(row, problem))

    def where(self, row: int) -> str:
        """Shard and key of a row, for messages."""
        shard = self.index.shards[int(self.index.columns["shard"][row])]
        return f"{self.index.store.where(shard.name)}, sample {self.index.key(row)}"

    def fetch(self, shard: int) -> None:
        """Have this shard on this node, where the set is a remote one."""
        self.index.store.open(self.index.shards[shard]).close()

    def _place(self, row: int) -> tuple[int, int, int]:
        """Shard, offset and size of the image of a row."""
        shard, offset, size = (int(self.index.columns[name][row]) for name in ("shard", "offset", "size"))
        return shard, offset, size

    def _undecodable(self, row: int, problem: str) -> str:
        _, offset, size = self._place(row)
        return (
            f"{self.where(row)}: expected an image of {size} bytes at offset {offset}, got one that does not decode"
            f" ({problem}); run python -m shards verify, replace the raw file and pack again (or pack with --skip-bad,"
            " or set data.on_bad_sample: replace)"
        )

    def _map(self, shard: int) -> mmap.mmap:
        if shard in self._maps:
            self._maps.move_to_end(shard)
            return self._maps[shard]
        with self._opened(shard) as file:
            self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # keeps the file, and its lock
        self._keep(OPEN_SHARDS)
        return self._maps[shard]

    def _opened(self, shard: int) -> BinaryIO:
        file, began = self.index.shards[shard], time.monotonic()
        while True:
            try:
                opened = self.index.store.open(file)
                break
            except CacheFullError:
                if time.monotonic() - began > WAIT_FOR_ROOM_S:
                    raise
            self._keep(0)  # what this reader holds cannot be removed to make room
            if self._asked_for_room:  # nor can what others hold, who let go of it when they reach the same window
                time.sleep(0.1)
            self._asked_for_room = True
        self._asked_for_room = False
        if os.fstat(opened.fileno()).st_size != file.size:
            opened.close()
            raise InputError(
                f"{self.index.store.where(file.name)}: expected {file.size} bytes, as when the set was opened, got"
                " another length; the set was replaced while in use, start again"
            )
        return opened

    def keep_only(self, shards: np.ndarray) -> None:
        """Unmap every other shard, so that a cache may remove it."""
        for shard in self._maps.keys() - set(shards.tolist()):
            self._maps.pop(shard).close()

    def _keep(self, count: int) -> None:
        """Unmap all but the `count` shards used last."""
        while len(self._maps) > count:
            self._maps.popitem(last=False)[1].close()
