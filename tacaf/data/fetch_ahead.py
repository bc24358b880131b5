"""Fetching the shards of coming steps from a server while the model trains."""

import weakref
from queue import SimpleQueue
from threading import Thread

import numpy as np

from tacaf.data.reader import ShardReader
from tacaf.vocabulary import InputError


class FetchAhead:
    """Fetches shards in a thread, so that the training does not wait for a remote set.

    The thread is a daemon and ends with this object, so the process can end during a download.
    """

    def __init__(self, reader: ShardReader) -> None:
        self._asked: set[int] = set()
        self._queue: SimpleQueue[int | None] = SimpleQueue()
        Thread(target=_fetch, args=(reader, self._queue, self._asked), daemon=True, name="fetch").start()
        weakref.finalize(self, self._queue.put, None)

    def want(self, shards: np.ndarray) -> None:
        """Fetch these shards in this order, except those already requested. Requests for any others are dropped."""
        numbers = shards.tolist()
        new = [shard for shard in numbers if shard not in self._asked]
        self._asked.intersection_update(numbers)
        self._asked.update(new)
        for shard in new:
            self._queue.put(shard)


def _fetch(reader: ShardReader, queue: "SimpleQueue[int | None]", asked: set[int]) -> None:
    """The thread's work. It has no reference to FetchAhead, which could not be deleted otherwise."""
    while (shard := queue.get()) is not None:
        if shard not in asked:  # its window is over
            continue
        try:
            reader.fetch(shard)
        except InputError:  # the next step requests it again; if the error persists, reading the shard reports it
            asked.discard(shard)
