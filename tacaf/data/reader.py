"""Reading the images of a shard set by row, as files that DALI decodes to the same pixels as every other part of TACAF.

That is the original file in the tar, except for grey of more than 8 bits, which is mapped by the set's scale, and for
formats that DALI does not decode or decodes differently.
"""

import os
import time
import weakref
from collections import OrderedDict
from typing import Any, BinaryIO

import numpy as np

from tacaf.data.index import ShardIndex
from tacaf.data.storage import CacheFullError
from tacaf.files import reason_of
from tacaf.images import GreyScale, ImageError, decode, decode_problem, for_dali
from tacaf.vocabulary import InputError, Modality

OPEN_SHARDS = 256  # at a time, far below the limit of open files of a process
WAIT_FOR_ROOM_S = 60.0  # in a full cache, for other processes of the node to finish the previous window


class BadSampleError(InputError):
    """An image that cannot be used. `row` is its row in the index."""

    def __init__(self, row: int, text: str) -> None:
        super().__init__(text)
        self.row = row


class ShardReader:
    """Reads from tars that are opened on first use and stay open, `open_shards` of them at a time.

    Only one thread may use it at a time. It can be pickled, without its open files.

    The tars are read and not memory-mapped, because a page of a map that must be loaded makes every thread of the
    process wait, and one that cannot be loaded kills the process.
    """

    def __init__(self, index: ShardIndex, open_shards: int = OPEN_SHARDS) -> None:
        self.index, self.open_shards = index, open_shards
        self._files: OrderedDict[int, BinaryIO] = OrderedDict()
        self._as_it_is = np.zeros(len(index), dtype=bool)  # rows whose files are known to need no change
        self._asked_for_room = False
        weakref.finalize(self, _close_all_but, 0, self._files)

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardReader, (self.index, self.open_shards)

    def read(self, row: int, decoded: bool = False) -> np.ndarray:
        """The image of a row as a file for DALI, uint8 [bytes]. Its pixels have 8 bits: the set's scale was applied.

        `decoded`: as a BMP, for a file that DALI was found to refuse. Raises BadSampleError, naming shard and key, if
        the image cannot be used.
        """
        data = self.original(row)
        if decoded or not self._as_it_is[row]:
            try:
                given = for_dali(data, self.scale_of(row), decoded)
            except ImageError as problem:
                raise BadSampleError(row, self._undecodable(row, str(problem))) from None
            self._as_it_is[row] = given is data  # the header needs no second check; the pipeline decodes the image
            data = given
        return np.frombuffer(data, dtype=np.uint8)

    def original(self, row: int) -> bytes:
        """The file that was packed. Raises BadSampleError if the shard ends before it or cannot be read there."""
        shard, offset, size = self._place(row)
        file = self._file(shard)
        size_here = max(0, min(size, self.index.shards[shard].size - offset))  # so that a wrong size fills no memory
        try:
            data = _bytes_at(file, offset, size_here)
        except OSError as error:
            raise BadSampleError(
                row, f"{self.where(row)}: cannot read {size} bytes at offset {offset}: {reason_of(error)}"
            ) from None
        if len(data) != size:
            raise BadSampleError(row, self._undecodable(row, f"{len(data)} bytes"))
        return data

    def pixels(self, row: int) -> np.ndarray:
        """The decoded image of a row, RGB uint8 [H, W, 3]. Raises BadSampleError like `read`."""
        try:
            return decode(self.original(row), self.scale_of(row))
        except ImageError as problem:
            raise BadSampleError(row, self._undecodable(row, str(problem))) from None

    def scale_of(self, row: int) -> GreyScale | None:
        """How the set maps grey of more than 8 bits in this row's modality; None if it has no such images."""
        return self.index.scales.get(Modality.of_code(self.index.columns["modality"][row]))

    def check(self, row: int) -> None:
        """Decode the image with Pillow. Raises BadSampleError if that fails."""
        problem = decode_problem(self.read(row).tobytes())
        if problem:
            raise BadSampleError(row, self._undecodable(row, problem))

    def where(self, row: int) -> str:
        """The shard and key of a row, for messages."""
        shard = self.index.shards[int(self.index.columns["shard"][row])]
        return f"{self.index.store.where(shard.name)}, sample {self.index.key(row)}"

    def fetch(self, shard: int) -> None:
        """Fetch this shard into the node's cache if the set is remote."""
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

    def _file(self, shard: int) -> BinaryIO:
        if shard in self._files:
            self._files.move_to_end(shard)
        else:
            self._files[shard] = self._opened(shard)  # a cached file is locked while it is open
            _close_all_but(self.open_shards, self._files)
        return self._files[shard]

    def _opened(self, shard: int) -> BinaryIO:
        file, began = self.index.shards[shard], time.monotonic()
        while True:
            try:
                opened = self.index.store.open(file)
                break
            except CacheFullError:
                if time.monotonic() - began > WAIT_FOR_ROOM_S:
                    raise
            _close_all_but(0, self._files)  # files that this reader has open cannot be removed to make room
            if self._asked_for_room:  # nor can those of other readers, who close them when they reach the same window
                time.sleep(0.1)
            self._asked_for_room = True
        self._asked_for_room = False
        if os.fstat(opened.fileno()).st_size != file.size:
            opened.close()
            raise InputError(
                f"{self.index.store.where(file.name)} has changed its length since the set was opened, when it had"
                f" {file.size} bytes; start again"
            )
        return opened

    def keep_only(self, shards: np.ndarray) -> None:
        """Close every other shard, so that a cache may remove it."""
        for shard in self._files.keys() - set(shards.tolist()):
            self._files.pop(shard).close()


def _close_all_but(count: int, files: "OrderedDict[int, BinaryIO]") -> None:
    """Close all but the `count` files used last."""
    while len(files) > count:
        files.popitem(last=False)[1].close()


def _bytes_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """`size` bytes from `offset` on, or fewer if the file ends. Raises OSError if they cannot be read."""
    parts: list[bytes] = []
    while size and (part := os.pread(file.fileno(), size, offset)):  # one call may return fewer bytes, at most 2 GiB
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return b"".join(parts)
