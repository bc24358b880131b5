"""Fetching the shards of coming steps from a server, beside the training."""

import weakref
from queue import SimpleQueue
from threading import Thread

import numpy as np

from tacaf.data.reader import ShardReader
from tacaf.vocabulary import InputError


class FetchAhead:
    """Fetches shards in a thread, so that a remote set does not keep the training waiting.

    A daemon thread, which ends with this object: nobody waits for a download when the process ends.
    """

    def __init__(self, reader: ShardReader) -> None:
        self._asked: set[int] = set()
        self._queue: SimpleQueue[int | None] = SimpleQueue()
        Thread(target=_fetch, args=(reader, self._queue, self._asked), daemon=True, name="fetch").start()
        weakref.finalize(self, self._queue.put, None)

    def want(self, shards: np.ndarray) -> None:
        """Begin with those not asked for before, in this order."""
        wanted = shards.tolist()
        new = [shard for shard in wanted if shard not in self._asked]
        self._asked.intersection_update(wanted)
        self._asked.update(new)
        for shard in new:
            self._queue.put(shard)


def _fetch(reader: ShardReader, queue: "SimpleQueue[int | None]", asked: set[int]) -> None:
    """The thread's work. It holds nothing of FetchAhead itself, which could not be deleted otherwise."""
    while (shard := queue.get()) is not None:
        if shard not in asked:  # its window is over
            continue
        try:
            reader.fetch(shard)
        except InputError:  # asked for again at the next step; if it stays, reading it tells
            asked.discard(shard)
