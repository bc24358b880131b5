"""The images of evaluation: as they are, in order, on CPU or GPU."""

from collections.abc import Iterator

import numpy as np
import torch

from tacaf.data.dali_graph import evaluation_graph, next_outputs
from tacaf.data.index import ShardIndex
from tacaf.data.reader import BadSampleError, ShardReader
from tacaf.vocabulary import InputError


class EvaluationPipeline:
    """Images as they are, each of this rank's rows once: yields (images float32 [b, 3, H, W], rows int64 [b])."""

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
        self.batch_size, self.device_id = batch_size, device_id
        self.reader = ShardReader(index)
        self._error: InputError | None = None
        self.pipeline = evaluation_graph(
            self._source, height, width, batch_size=batch_size, threads=threads, device_id=device_id
        )

    def _source(self, number: int) -> tuple[list[np.ndarray]]:
        rows = self._batch(number)
        if not len(rows):  # DALI asks ahead: past the end it gets the last rows again, which nobody collects
            rows = self.rows[-1:]
        try:
            return ([self.reader.read(row) for row in rows],)
        except InputError as error:
            self._error = error
            raise

    def _batch(self, number: int) -> np.ndarray:
        return self.rows[number * self.batch_size : (number + 1) * self.batch_size]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        number = 0
        while len(rows := self._batch(number)):
            try:
                (images,) = next_outputs(self.pipeline, self.device_id)
            except RuntimeError as error:
                raise self._error or _explain(error, self.reader, rows) from None
            yield images.clone(), torch.from_numpy(rows)
            number += 1


def _explain(error: RuntimeError, reader: ShardReader, rows: np.ndarray) -> Exception:
    """DALI's error as ours: the image that does not decode, or what DALI said."""
    for row in np.unique(rows):
        try:
            reader.check(int(row))
        except BadSampleError as problem:
            return problem
    return error
