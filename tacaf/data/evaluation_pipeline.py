"""The pipeline that loads images for evaluation: in order and without augmentation, on CPU or GPU."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from tacaf.data.dali_graph import evaluation_graph, next_outputs, refused
from tacaf.data.index import ShardIndex
from tacaf.data.reader import ShardReader
from tacaf.vocabulary import InputError

_AHEAD = 4  # batches that a graph may be working on when it fails; DALI prepares two ahead


class EvaluationPipeline:
    """Images without augmentation, each of this rank's rows once. Yields (images float32 [b, 3, H, W], rows int64 [b]).

    Raises InputError, naming the image, if one cannot be decoded. Images that only DALI refuses are decoded by the
    reader instead.
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
        """A graph for the batches from number `first` on."""
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
        if not len(rows):  # DALI reads ahead: past the end it gets the last row again, and nobody uses the result
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
                del graph  # so that its memory is freed before the new one allocates as much
                graph = self._graph(number)
                continue
            yield images.clone(), torch.from_numpy(rows)
            number += 1

    def _decode_refused(self, rows: list[int]) -> bool:
        """Let the reader decode those of these rows that DALI refuses. Returns whether there are any.

        Raises InputError for an image that Pillow cannot decode either.
        """
        for row in rows:
            self.reader.check(row)
        rows = [row for row in rows if row not in self.decoded]
        failed = refused([self.reader.read(row) for row in rows], self.device_id)
        self.decoded.update(rows[place] for place in failed)
        return bool(failed)
