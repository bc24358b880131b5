"""The pipeline that reads, decodes and augments one rank's training batches, starting at any step."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch

from tacaf.data.augment import Parameters
from tacaf.data.config import ReadingConfig
from tacaf.data.dali_graph import next_outputs, refused, training_graph
from tacaf.data.fetch_ahead import FetchAhead
from tacaf.data.index import ShardIndex
from tacaf.data.pixels import finish, finish_whole
from tacaf.data.plan import PlannedBatch
from tacaf.data.read_ahead import ReadAhead
from tacaf.data.reader import OPEN_SHARDS, BadSampleError, ShardReader
from tacaf.data.training_source import Feed, ReadBatch, TrainingSource
from tacaf.interfaces import Batch, DrawnPairs
from tacaf.vocabulary import Branch, InputError

DrawPairs: TypeAlias = Callable[[PlannedBatch, int, int], DrawnPairs]  # of the plan of (epoch, step)


class TrainingPipeline:
    """An endless iterator over the batches of `source` from (epoch, step) `start` on.

    With `reading.workers`, that many threads read while the model trains, which helps with slow storage and does not
    change the batches. `draw_pairs`, if given, draws the batch's pairs on the host.

    An image that cannot be read or decoded raises InputError with its shard and key. With `reading.on_bad_sample`
    "replace", the next sound image of its identity and modality is used instead: `replaced` counts these images,
    `report` gets a sentence for each, and InputError is raised only if they exceed `reading.bad_sample_share` of the
    training images. An image that Pillow decodes but DALI refuses is decoded by the reader, which is reported too.
    """

    def __init__(
        self,
        index: ShardIndex,
        source: TrainingSource,
        reading: ReadingConfig | None = None,
        *,
        start: tuple[int, int] = (0, 0),
        device_id: int | None = None,
        report: Callable[[str], None] = print,
        draw_pairs: DrawPairs | None = None,
    ) -> None:
        self.source, self.plan, self.augment = source, source.plan, source.augment
        self.config = reading or ReadingConfig()
        self.device_id, self.report, self.draw_pairs = device_id, report, draw_pairs
        self.reader = ShardReader(index)
        self.next = start[0] * source.steps + start[1]
        self.instead: dict[int, int] = {}  # unusable row -> the row used in its place
        self.decoded: set[int] = set()  # rows that DALI refuses, so that the graph gets their pixels
        self.fetching = FetchAhead(ShardReader(index)) if index.remote and self.plan.config.by_shards else None
        self.reading, self.feed, self.graph = self._build()

    @property
    def replaced(self) -> int:
        """How many images of this rank's share have been unusable so far, each counted once."""
        return len(self.instead)

    def _build(self) -> tuple[ReadAhead[ReadBatch] | None, Feed, Any]:
        """The graph for the batches from the next step on, and what feeds it."""
        reading = self._read_ahead() if self.config.workers else None
        feed = Feed(reading.take if reading else self._read(self.reader), self.next)
        graph = training_graph(
            feed,
            self.plan.config.branches,
            self.augment.height,
            self.augment.width,
            images_per_modality=self.plan.config.images_per_modality // self.source.ranks,
            threads=self.config.threads,
            device_id=self.device_id,
            prefetch=self.config.prefetch,
        )
        return reading, feed, graph

    def _read(self, reader: ShardReader) -> Callable[[int], ReadBatch]:
        """A function that reads a batch by its number; it knows the images replaced and decoded until now."""
        return functools.partial(self.source.read, reader, dict(self.instead), frozenset(self.decoded))

    def _read_ahead(self) -> ReadAhead[ReadBatch]:
        # A cache with room for two windows cannot serve readers in three of them: one thread reads in order.
        workers = 1 if self.fetching else self.config.workers
        share = max(1, OPEN_SHARDS // workers)  # of the open shards
        reads = [self._read(ShardReader(self.reader.index, share)) for _ in range(workers)]
        return ReadAhead(reads, self.next, self.config.prefetch + workers)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        began = time.perf_counter()
        epoch, step = self.source.where(self.next)
        if self.fetching is not None:
            self.fetching.want(self.source.shards_ahead(self.next))
        # Pairs are drawn while DALI's threads prepare the images. A replaced image does not change them.
        pairs = self.draw_pairs(self._foreseen(), epoch, step) if self.draw_pairs else DrawnPairs()
        branches = self._outputs()
        planned, drawn = self.feed.came_out(self.next)
        images_BCHW = self._finished(branches, drawn)
        self.next += 1
        label, branch, group, position, row = (
            torch.from_numpy(column)
            for column in (planned.label_B, planned.branch_B, planned.group_B, planned.position_B, planned.row_B)
        )
        visible = int((planned.branch_B != Branch.INFRARED).sum())
        wait_s = time.perf_counter() - began
        return Batch(images_BCHW, label, branch, group, position, row, visible, epoch, step, pairs, wait_s)

    def _foreseen(self) -> PlannedBatch:
        """The plan of the next batch, in which more images may yet be replaced."""
        return self.feed.foreseen(self.next) or self.source.planned(self.next, self.instead)

    def _finished(self, branches: list[torch.Tensor], drawn: Parameters) -> torch.Tensor:
        """The finished batch in its own memory, because DALI reuses that of its outputs."""
        first = branches[0]
        if first.device.type != "cpu":
            return finish_whole(torch.cat(branches), drawn, self.augment.channel_augment_space)
        size = sum(len(images) for images in branches)
        out_BCHW = torch.empty((size, *first.shape[1:]), dtype=first.dtype, device=first.device)
        start = 0
        for images in branches:
            own = slice(start, start + len(images))
            part = Parameters(*(values[own] for values in drawn))
            finish(images, part, self.augment.channel_augment_space, out_BCHW[own])
            start += len(images)
        return out_BCHW

    def _outputs(self) -> list[torch.Tensor]:
        """The graph's outputs for the next batch. After a failure, removes the cause and rebuilds the graph."""
        while True:
            try:
                return next_outputs(self.graph, self.device_id)
            except Exception as error:  # DALI's error, or a reader's
                problem = self._find_problem()
                if problem is not None:
                    if self.config.on_bad_sample == "stop":
                        raise problem from None
                    self._replace(problem)
                elif self.feed.error is not None or not self._decode_refused():
                    raise self.feed.error or error from None
                if self.reading is not None:
                    self.reading.close()
                del self.graph  # so that its memory is freed before the new one allocates as much
                self.reading, self.feed, self.graph = self._build()

    def _find_problem(self) -> BadSampleError | None:
        """The first unusable image in the batches that the graph may have been working on, or None."""
        for row in self._rows_ahead():
            try:
                self.reader.check(row)
            except BadSampleError as problem:
                return problem
        return None

    def _rows_ahead(self) -> list[int]:
        """The rows of the batches that the graph may be working on, each once."""
        ahead = range(self.next, self.next + self.config.prefetch + 2)
        rows = np.concatenate([self.source.planned(number, self.instead).row_B for number in ahead])
        return list(dict.fromkeys(rows.tolist()))

    def _decode_refused(self) -> bool:
        """Let the reader decode images ahead that DALI refuses. Returns whether there are any."""
        rows = [row for row in self._rows_ahead() if row not in self.decoded]
        failed = [rows[place] for place in refused([self.reader.read(row) for row in rows], self.device_id)]
        self.decoded.update(failed)
        for row in failed:
            self.report(f"{self.reader.where(row)}: DALI cannot decode this image; it is decoded without DALI")
        return bool(failed)

    def _replace(self, problem: BadSampleError) -> None:
        """Replace an image with the next sound one of the same identity and modality, in cyclic order of the index.

        So the choice depends only on the images, not on the rank or the step.
        """
        start, stop = self.plan.training_set.range_of(problem.row)
        others = [*range(problem.row + 1, stop), *range(start, problem.row)]
        substitute = next((row for row in others if row not in self.instead and self._sound(row)), None)
        if substitute is None:
            raise InputError(f"{problem}; no other image of this identity and modality can replace it") from None
        self.instead[problem.row] = substitute
        share = self.replaced / sum(self.plan.training_set.images)
        self.report(
            f"{problem}; {self.reader.index.key(substitute)} is used instead; replaced so far: {self.replaced} images"
            f" ({100 * share:.2g} %)"
        )
        most = self.config.bad_sample_share
        if share > most:
            raise InputError(
                f"expected at most {100 * most:g} % unusable images (data.bad_sample_share), got"
                f" {self.replaced} of {sum(self.plan.training_set.images)}; the last one: {problem}"
            )

    def _sound(self, row: int) -> bool:
        try:
            self.reader.check(row)
        except BadSampleError:
            return False
        return True
