"""The DALI pipelines, on CPU or GPU: they execute the plan and the drawn parameters and decide nothing themselves.

Encoded bytes and every random parameter come in through one external source, a pure function of the step, so the graph
holds no random operator and resuming means starting to count elsewhere. V0 and V1 are two crops of one decoded image.
Erasing and the channel matrix follow in `pixels.py`.
"""

import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Thread
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types

from tacaf.data.augment import MEAN, STD, AugmentConfig, Parameters, draw_parameters
from tacaf.data.index import ShardIndex
from tacaf.data.pixels import finish, finish_whole
from tacaf.data.plan import Plan, PlannedBatch
from tacaf.data.reader import BadSampleError, ShardReader
from tacaf.interfaces import Batch, Pairs
from tacaf.vocabulary import Branch, InputError, Modality

Node: TypeAlias = Any  # DALI's data node
DrawPairs: TypeAlias = Callable[[PlannedBatch, int, int], dict[str, Pairs]]  # a plan of (epoch, step) to Batch.pairs*
PARAMETERS = 2  # external inputs per branch: crop, mirror


def _decode(encoded: Node, height: int, width: int, device_id: int | None) -> Node:
    """RGB uint8 HWC of the wanted size; bilinear, no antialiasing."""
    image = fn.decoders.image(encoded, device="cpu" if device_id is None else "mixed", output_type=types.RGB)
    return fn.resize(image, resize_y=height, resize_x=width, interp_type=types.INTERP_LINEAR, antialias=False)


def _crop(image: Node, height: int, width: int, crop: Node, mirror: Node) -> Node:
    """Crop from the image padded with raw 0, mirror, normalise; float32 CHW."""
    # A shape given as a positional argument becomes a GPU node, whose values DALI copies back at every run; as a named
    # argument it stays on the CPU beside the anchors.
    image = fn.slice(image, start=crop, shape=[height, width], axes=[0, 1], out_of_bounds_policy="pad")
    return _normalise(image, mirror)


def _normalise(image: Node, mirror: Node | int = 0) -> Node:
    mean, std = (255 * MEAN).tolist(), (255 * STD).tolist()
    return fn.crop_mirror_normalize(
        image, mirror=mirror, mean=mean, std=std, dtype=types.FLOAT, output_layout="CHW"
    )  # fmt: skip


class TrainingSource:
    """Bytes and parameters of this rank's share of a batch: pure in the batch's number and in `instead`.

    Can be pickled, so that DALI's worker processes call it too.
    """

    def __init__(
        self, reader: ShardReader, plan: Plan, augment: AugmentConfig, steps: int, rank: int, ranks: int
    ) -> None:
        self.reader, self.plan, self.augment, self.steps = reader, plan, augment, steps
        self.rank, self.ranks = rank, ranks
        self.first = 0
        self.instead: dict[int, int] = {}  # unusable row -> the row shown in its place
        self.error: InputError | None = None
        self.remember = False  # where the process that calls this is the one that trains
        self._made: dict[int, tuple[PlannedBatch, Parameters]] = {}

    def start_at(self, count: int) -> None:
        """The graph's first batch will be this one; what was made for another graph is forgotten."""
        self.first, self.error = count, None
        self._made.clear()

    def where(self, count: int) -> tuple[int, int]:
        """(epoch, step) of the batch with this number, counted from the start of the run."""
        return divmod(count, self.steps)

    def planned(self, count: int) -> PlannedBatch:
        """The plan of the batch with this number, unusable images replaced."""
        planned = self.plan.rank_batch(*self.where(count), self.rank, self.ranks)
        if not self.instead:
            return planned
        rows = [self.instead.get(row, row) for row in planned.row_B.tolist()]
        return planned._replace(row_B=np.array(rows, dtype=np.int64))

    def foreseen(self, count: int) -> PlannedBatch:
        """The plan of a batch that may not have come out yet, but for replaced images."""
        return self._made[count][0] if count in self._made else self.planned(count)

    def made(self, count: int) -> tuple[PlannedBatch, Parameters]:
        """Plan and parameters of that batch, which is over with; from memory where this process made it."""
        for before in [other for other in self._made if other < count]:
            del self._made[before]
        if count in self._made:
            return self._made.pop(count)
        planned = self.planned(count)
        return planned, self.drawn(count, planned)

    def drawn(self, count: int, planned: PlannedBatch) -> Parameters:
        """What is done to each image of that batch."""
        return draw_parameters(
            self.augment, self.plan.seed, *self.where(count), planned.position_B, planned.branch_B
        )  # fmt: skip

    def __call__(self, info: Any) -> tuple[list[np.ndarray], ...]:
        count = self.first + info.iteration
        planned = self.planned(count)
        drawn = self.drawn(count, planned)
        if self.remember:
            self._made[count] = planned, drawn  # wanted again when the batch comes out
        index = self.reader.index
        if index.remote and self.plan.config.window_shards:
            self.reader.keep_only(self.plan.shards_ahead(*self.where(count), self.steps))
        try:
            found = [self._bytes(planned, Branch.VISIBLE), self._bytes(planned, Branch.INFRARED)]
        except InputError as error:
            self.error = error  # an error raised here would come back wrapped in DALI's own
            raise
        for branch in self.plan.config.branches:
            own = planned.branch_B == branch
            found += [list(drawn.crop_B2[own]), [np.asarray(one) for one in drawn.mirror_B[own]]]
        return tuple(found)

    def _bytes(self, planned: PlannedBatch, branch: Branch) -> list[np.ndarray]:
        return [self.reader.read(row) for row in planned.row_B[planned.branch_B == branch]]


class TrainingPipeline:
    """This rank's share of every global batch from (epoch, step) on, for ever.

    `wait_s` is how long the caller waited for the last batch, in seconds. With `workers` the reading happens in that
    many processes, which helps where storage is slow; batches are the same. An image that cannot be read or decoded
    raises InputError naming shard and key, or with `on_bad_sample` "replace" gives way to the next sound one of its
    identity and modality; `replaced` counts those, `report` gets a sentence for each, and beyond `bad_sample_share` of
    the training images the error comes after all. `draw_pairs` draws the batch's pairs on the host; without it, none.
    """

    def __init__(
        self, index: ShardIndex, plan: Plan, augment: AugmentConfig, *,
        rank: int = 0, ranks: int = 1, device_id: int | None = None,
        start: tuple[int, int] = (0, 0), steps_per_epoch: int | None = None,
        threads: int = 2, prefetch: int = 2, workers: int = 0,
        on_bad_sample: Literal["stop", "replace"] = "stop", bad_sample_share: float = 0.001,
        report: Callable[[str], None] = print, draw_pairs: DrawPairs | None = None,
    ) -> None:  # fmt: skip
        plan.check_ranks(ranks)
        self.plan, self.augment, self.report, self.draw_pairs = plan, augment, report, draw_pairs
        self.device_id, self.threads, self.prefetch, self.workers = device_id, threads, prefetch, workers
        self.on_bad_sample, self.bad_sample_share = on_bad_sample, bad_sample_share
        self.reader = ShardReader(index)
        self.source = TrainingSource(
            self.reader, plan, augment, steps_per_epoch or plan.steps_per_epoch, rank, ranks
        )  # fmt: skip
        self.source.remember = not workers
        self.next = start[0] * self.source.steps + start[1]
        self.wait_s = 0.0
        self.ahead = FetchAhead(self.reader) if index.remote and plan.config.window_shards else None
        self.pipeline = self._build()

    @property
    def replaced(self) -> int:
        """Images of this rank's share that were unusable so far, each counted once."""
        return len(self.source.instead)

    def _build(self) -> Pipeline:
        """The graph, from the next step on."""
        config, branches = self.augment, self.plan.config.branches
        self.source.start_at(self.next)
        pipeline = Pipeline(
            batch_size=self.plan.config.images_per_modality // self.source.ranks,
            num_threads=self.threads,
            device_id=self.device_id,
            prefetch_queue_depth=self.prefetch,
            py_num_workers=max(1, self.workers),
            py_start_method="spawn",
        )
        with pipeline:
            inputs = fn.external_source(
                source=self.source,
                num_outputs=2 + PARAMETERS * len(branches),
                batch=True,
                batch_info=True,
                parallel=bool(self.workers),
                prefetch_queue_depth=self.prefetch if self.workers else None,
            )
            decoded = {
                modality: _decode(inputs[modality.code], config.height, config.width, self.device_id)
                for modality in Modality
            }
            outputs = []
            for place, branch in enumerate(branches):
                own = inputs[2 + place * PARAMETERS : 2 + (place + 1) * PARAMETERS]
                outputs.append(_crop(decoded[branch.modality], config.height, config.width, *own))
            pipeline.set_outputs(*outputs)
        pipeline.build()
        return pipeline

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        began = time.perf_counter()
        epoch, step = self.source.where(self.next)
        if self.ahead is not None:
            self.ahead.want(self.plan.shards_ahead(epoch, step, self.source.steps))
        # Before the wait for the images, which DALI's threads prepare meanwhile. A replaced image changes no pair.
        pairs = self.draw_pairs(self.source.foreseen(self.next), epoch, step) if self.draw_pairs else {}
        outputs = self._run()
        planned, drawn = self.source.made(self.next)
        images_BCHW = self._finished([_to_torch(output) for output in outputs], drawn)
        self.next += 1
        self.wait_s = time.perf_counter() - began
        label, branch, group, position, row = (
            torch.from_numpy(column)
            for column in (planned.label_B, planned.branch_B, planned.group_B, planned.position_B, planned.row_B)
        )
        visible = int((planned.branch_B != Branch.INFRARED).sum())
        return Batch(images_BCHW, label, branch, group, position, row, visible, epoch, step, **pairs)

    def _finished(self, branches: list[torch.Tensor], drawn: Parameters) -> torch.Tensor:
        """The batch in memory of its own: DALI will use that of its outputs again."""
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

    def _run(self) -> Any:
        """The graph's outputs for the next batch; after replacing what is unusable, from a graph built anew."""
        rebuilt = False
        while True:
            try:
                return self.pipeline.run(_stream(self.device_id))
            except Exception as error:  # DALI's own from the graph, a bare one from a worker process
                problem = self._find_problem()
                if problem is None and (rebuilt or not self.workers or self.source.error):
                    raise self.source.error or error from None
                if problem is None:
                    rebuilt = True  # a worker was killed, perhaps by the signal that asks this run to stop
                elif self.on_bad_sample == "stop":
                    raise problem from None
                else:
                    self._replace(problem)
                del self.pipeline  # its workers end before the new ones begin
                self.pipeline = self._build()

    def _find_problem(self) -> BadSampleError | None:
        """The first unusable image of the batches that the graph may have been working on."""
        ahead = range(self.next, self.next + self.prefetch + max(1, self.workers) + 1)
        rows = np.concatenate([self.source.planned(count).row_B for count in ahead])
        for row in dict.fromkeys(rows.tolist()):
            try:
                self.reader.check(row)
            except BadSampleError as problem:
                return problem
        return None

    def _replace(self, problem: BadSampleError) -> None:
        """The next sound image of the same identity and modality, in the order of the index and round to its start.

        So the choice depends on the images alone, not on rank, step or what was replaced before.
        """
        start, stop = self.plan.training_set.range_of(problem.row)
        others = [*range(problem.row + 1, stop), *range(start, problem.row)]
        found = next((row for row in others if row not in self.source.instead and self._sound(row)), None)
        if found is None:
            raise InputError(f"{problem}; no other image of this identity and modality can take its place") from None
        self.source.instead[problem.row] = found
        share = self.replaced / sum(self.plan.training_set.images)
        self.report(
            f"{problem}; {self.reader.index.key(found)} takes its place; replaced so far: {self.replaced} images"
            f" ({100 * share:.2g} %)"
        )
        if share > self.bad_sample_share:
            raise InputError(
                f"expected at most {100 * self.bad_sample_share:g} % unusable images (data.bad_sample_share), got"
                f" {self.replaced} of {sum(self.plan.training_set.images)}, the last: {problem}"
            )

    def _sound(self, row: int) -> bool:
        try:
            self.reader.check(row)
        except BadSampleError:
            return False
        return True


class FetchAhead:
    """Fetches the shards of coming steps in a thread, so that a remote set does not keep the training waiting.

    A daemon thread: nobody waits for a download when the process ends.
    """

    def __init__(self, reader: ShardReader) -> None:
        self.reader = reader
        self._asked: set[int] = set()
        self._queue: SimpleQueue[int] = SimpleQueue()
        Thread(target=self._fetch, daemon=True, name="fetch").start()

    def want(self, shards: np.ndarray) -> None:
        """Begin with those not asked for before."""
        wanted = set(shards.tolist())
        for shard in sorted(wanted - self._asked):
            self._queue.put(shard)
        self._asked = wanted

    def _fetch(self) -> None:
        while True:
            shard = self._queue.get()
            if shard not in self._asked:  # its window is over
                continue
            try:
                self.reader.fetch(shard)
            except InputError:  # asked for again at the next step; if it stays, reading it tells
                self._asked.discard(shard)


class EvaluationPipeline:
    """Images as they are, each of this rank's rows once: yields (images float32 [b, 3, H, W], rows int64 [b])."""

    def __init__(
        self, index: ShardIndex, rows: np.ndarray, height: int, width: int, *,
        batch_size: int = 64, rank: int = 0, ranks: int = 1,
        device_id: int | None = None, threads: int = 2,
    ) -> None:  # fmt: skip
        self.rows = np.asarray(rows, dtype=np.int64)[rank::ranks]
        self.batch_size, self.device_id = batch_size, device_id
        self.reader = ShardReader(index)
        self._error: InputError | None = None
        self.pipeline = Pipeline(batch_size=batch_size, num_threads=threads, device_id=device_id)
        with self.pipeline:
            encoded = fn.external_source(
                source=self._source, num_outputs=1, batch=True, batch_info=True, parallel=False
            )[0]
            image = _decode(encoded, height, width, device_id)
            self.pipeline.set_outputs(_normalise(image))
        self.pipeline.build()

    def _source(self, info: Any) -> tuple[list[np.ndarray]]:
        rows = self._batch(info.iteration)
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
                (output,) = self.pipeline.run(_stream(self.device_id))
            except RuntimeError as error:
                raise self._error or _explain(error, self.reader, rows) from None
            yield _to_torch(output).clone(), torch.from_numpy(rows)
            number += 1


def _stream(device_id: int | None) -> Any:
    """The stream that will read DALI's outputs, so that their memory is not used again before it has."""
    return None if device_id is None else torch.cuda.current_stream(device_id)


def _to_torch(output: Any) -> torch.Tensor:
    """A DALI batch as a tensor in DALI's memory, which the next batch uses again."""
    return torch.from_dlpack(output.as_tensor())


def _explain(error: RuntimeError, reader: ShardReader, rows: np.ndarray) -> Exception:
    """DALI's error as ours: the image that does not decode, or what DALI said."""
    for row in np.unique(rows):
        try:
            reader.check(int(row))
        except BadSampleError as problem:
            return problem
    return error
