"""The images of evaluation: as they are, in order, on CPU or GPU."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from tacaf.data.dali_graph import evaluation_graph, next_outputs, refused
from tacaf.data.index import ShardIndex
from tacaf.data.reader import ShardReader
from tacaf.vocabulary import InputError

_AHEAD = 4  # batches that a graph may be working on when it fails


class EvaluationPipeline:
    """Images as they are, each of this rank's rows once: yields (images float32 [b, 3, H, W], rows int64 [b]).

    InputError names an image that does not decode. One that only DALI refuses is decoded by the reader.
    """

    def __init__(
        self,
        index: ShardIndex,
        rows: np.ndarray,
        height: int,
        width: int,
        *,
        batch_size: int = 64,
        rank: int = 0,
        ranks: int = 1,
        device_id: int | None = None,
        threads: int = 2,
    ) -> None:
        self.rows = np.asarray(rows, dtype=np.int64)[rank::ranks]
        self.height, self.width, self.threads = height, width, threads
        self.batch_size, self.device_id = batch_size, device_id
        self.reader = ShardReader(index)
        self.decoded: set[int] = set()  # rows that DALI refuses, so that the graph gets their pixels
        self._error: InputError | None = None

    def _graph(self, first: int) -> Any:
        """A graph of the batches from number `first` on."""
        return evaluation_graph(
            lambda number: self._source(first + number),
            self.height,
            self.width,
            batch_size=self.batch_size,
            threads=self.threads,
            device_id=self.device_id,
        )

    def _source(self, number: int) -> tuple[list[np.ndarray]]:
        rows = self._batch(number)
        if not len(rows):  # DALI asks ahead: past the end it gets the last rows again, which nobody collects
            rows = self.rows[-1:]
        try:
            return ([self.reader.read(row, row in self.decoded) for row in rows.tolist()],)
        except InputError as error:
            self._error = error
            raise

    def _batch(self, number: int) -> np.ndarray:
        return self.rows[number * self.batch_size : (number + 1) * self.batch_size]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        number, graph = 0, self._graph(0)
        while len(rows := self._batch(number)):
            try:
                (images,) = next_outputs(graph, self.device_id)
            except RuntimeError as error:
                if self._error is not None:
                    raise self._error from None
                ahead = np.concatenate([self._batch(number + later) for later in range(_AHEAD)])
                if not self._decode_refused(np.unique(ahead).tolist()):
                    raise error from None
                del graph  # its memory is free before the new one takes as much
                graph = self._graph(number)
                continue
            yield images.clone(), torch.from_numpy(rows)
            number += 1

    def _decode_refused(self, rows: list[int]) -> bool:
        """Have the reader decode what DALI refuses of these rows. Whether there is any; InputError for a bad image."""
        for row in rows:
            self.reader.check(row)
        rows = [row for row in rows if row not in self.decoded]
        found = refused([self.reader.read(row) for row in rows], self.device_id)
        self.decoded.update(rows[place] for place in found)
        return bool(found)
