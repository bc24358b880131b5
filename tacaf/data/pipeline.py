"""The DALI pipelines, on CPU or GPU: they execute the plan and the drawn parameters and decide nothing themselves.

Encoded bytes and every random parameter come in through one external source, a pure function of the step, so the graph
holds no random operator and resuming means starting to count elsewhere. V0 and V1 are two crops of one decoded image.
"""

import io
import time
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types
from PIL import Image

from tacaf.data.augment import AugmentConfig, affine, draw_parameters
from tacaf.data.index import ShardIndex
from tacaf.data.plan import Plan, PlannedBatch
from tacaf.data.reader import ShardReader
from tacaf.interfaces import Batch
from tacaf.vocabulary import Branch, InputError, Modality

Node: TypeAlias = Any  # DALI's data node
PARAMETERS = 7  # external inputs per branch: crop, mirror, matrix, offset, erase anchor, erase shape, erase fill
MAX_PIXELS = 2**26  # more than any detector's crop; keeps a hostile header from filling the memory


def _decode(encoded: Node, height: int, width: int, device_id: int | None) -> Node:
    """RGB uint8 HWC of the wanted size; bilinear, no antialiasing."""
    image = fn.decoders.image(encoded, device="cpu" if device_id is None else "mixed", output_type=types.RGB)
    return fn.resize(image, resize_y=height, resize_x=width, interp_type=types.INTERP_LINEAR, antialias=False)


def _augment(image: Node, height: int, width: int, *parameters: Node) -> Node:
    """Crop from the padded image, mirror, normalise and mix channels in one affine map, erase; float32 CHW."""
    crop, mirror, matrix, offset, anchor, shape, fill = parameters
    image = fn.slice(
        image,
        crop,
        [height, width],
        axes=[0, 1],
        normalized_anchor=False,
        normalized_shape=False,
        out_of_bounds_policy="pad",
    )
    image = fn.flip(image, horizontal=mirror)
    image = fn.coord_transform(image, MT=fn.cat(matrix, offset, axis=1), dtype=types.FLOAT)
    image = fn.erase(image, anchor=anchor, shape=shape, axes=[0, 1], fill_value=fill)
    return fn.transpose(image, perm=[2, 0, 1])


class TrainingPipeline:
    """This rank's share of every global batch from (epoch, step) on, for ever.

    `wait_s` is how long the caller waited for the last batch, in seconds. Images that cannot be read or decoded raise
    InputError naming shard and key.
    """

    def __init__(
        self, index: ShardIndex, plan: Plan, augment: AugmentConfig, *,
        rank: int = 0, ranks: int = 1, device_id: int | None = None,
        start: tuple[int, int] = (0, 0), steps_per_epoch: int | None = None, threads: int = 2, prefetch: int = 2,
    ) -> None:  # fmt: skip
        plan.check_ranks(ranks)
        self.plan, self.augment, self.rank, self.ranks = plan, augment, rank, ranks
        self.steps = steps_per_epoch or plan.steps_per_epoch
        self.first = start[0] * self.steps + start[1]
        self.next = self.first
        self.reader = ShardReader(index)
        self.wait_s = 0.0
        self._error: InputError | None = None
        self.pipeline = self._build(device_id, threads, prefetch)

    def _build(self, device_id: int | None, threads: int, prefetch: int) -> Pipeline:
        config, branches = self.augment, self.plan.config.branches
        images = self.plan.config.images_per_modality // self.ranks
        pipeline = Pipeline(batch_size=images, num_threads=threads, device_id=device_id, prefetch_queue_depth=prefetch)
        with pipeline:
            inputs = fn.external_source(
                source=self._source,
                num_outputs=2 + PARAMETERS * len(branches),
                batch=True,
                batch_info=True,
                parallel=False,
            )
            decoded = {
                modality: _decode(inputs[modality.code], config.height, config.width, device_id)
                for modality in Modality
            }
            outputs = []
            for place, branch in enumerate(branches):
                own = inputs[2 + place * PARAMETERS : 2 + (place + 1) * PARAMETERS]
                outputs.append(_augment(decoded[branch.modality], config.height, config.width, *own))
            pipeline.set_outputs(*outputs)
        pipeline.build()
        return pipeline

    def where(self, count: int) -> tuple[int, int]:
        """(epoch, step) of the batch with this number, counted from the start of the run."""
        return divmod(count, self.steps)

    def _source(self, info: Any) -> tuple[list[np.ndarray], ...]:
        """Bytes and parameters of one batch: pure in the batch's number."""
        epoch, step = self.where(self.first + info.iteration)
        planned = self.plan.rank_batch(epoch, step, self.rank, self.ranks)
        drawn = draw_parameters(self.augment, self.plan.seed, epoch, step, planned.position_B, planned.branch_B)
        matrix, offset, fill = affine(drawn.channel_BCC, self.augment.channel_augment_space)
        boxes = (
            drawn.erase_anchor_B2.astype(np.float32),
            drawn.erase_shape_B2.astype(np.float32),
        )  # as fn.erase wants them
        values = (drawn.crop_B2, drawn.mirror_B, matrix, offset[:, :, None], *boxes, fill)
        try:
            found = [self._bytes(planned, Branch.VISIBLE), self._bytes(planned, Branch.INFRARED)]
        except InputError as error:
            self._error = error  # an error raised here would come back wrapped in DALI's own
            raise
        for branch in self.plan.config.branches:
            own = planned.branch_B == branch
            found += [list(value[own]) for value in values]
        return tuple(found)

    def _bytes(self, planned: PlannedBatch, branch: Branch) -> list[np.ndarray]:
        return [self.reader.read(row) for row in planned.row_B[planned.branch_B == branch]]

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        began = time.perf_counter()
        epoch, step = self.where(self.next)
        planned = self.plan.rank_batch(epoch, step, self.rank, self.ranks)
        try:
            outputs = self.pipeline.run()
        except RuntimeError as error:
            raise self._error or _explain(error, self.reader, planned.row_B) from None
        images_BCHW = torch.cat([_to_torch(output) for output in outputs])
        self.next += 1
        self.wait_s = time.perf_counter() - began
        label, branch, group, position, row = (
            torch.from_numpy(column)
            for column in (planned.label_B, planned.branch_B, planned.group_B, planned.position_B, planned.row_B)
        )
        visible = int((planned.branch_B != Branch.INFRARED).sum())
        return Batch(images_BCHW, label, branch, group, position, row, visible, epoch, step)


class EvaluationPipeline:
    """Images as they are, each of this rank's rows once: yields (images float32 [b, 3, H, W], rows int64 [b])."""

    def __init__(
        self, index: ShardIndex, rows: np.ndarray, height: int, width: int, *,
        batch_size: int = 64, rank: int = 0, ranks: int = 1,
        device_id: int | None = None, threads: int = 2,
    ) -> None:  # fmt: skip
        self.rows = np.asarray(rows, dtype=np.int64)[rank::ranks]
        self.batch_size = batch_size
        self.reader = ShardReader(index)
        self._error: InputError | None = None
        matrix, offset, _ = affine(np.eye(3)[None], "normalized")
        self.pipeline = Pipeline(batch_size=batch_size, num_threads=threads, device_id=device_id)
        with self.pipeline:
            encoded = fn.external_source(
                source=self._source, num_outputs=1, batch=True, batch_info=True, parallel=False
            )[0]
            image = _decode(encoded, height, width, device_id)
            image = fn.coord_transform(image, M=matrix[0].ravel().tolist(), T=offset[0].tolist(), dtype=types.FLOAT)
            self.pipeline.set_outputs(fn.transpose(image, perm=[2, 0, 1]))
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
                (output,) = self.pipeline.run()
            except RuntimeError as error:
                raise self._error or _explain(error, self.reader, rows) from None
            yield _to_torch(output), torch.from_numpy(rows)
            number += 1


def _to_torch(output: Any) -> torch.Tensor:
    """A DALI batch as a tensor of its own: DALI will use the memory again."""
    dense = output.as_tensor()
    return torch.from_dlpack(dense).clone()


def _explain(error: RuntimeError, reader: ShardReader, rows: np.ndarray) -> Exception:
    """DALI's error as ours: find the image that does not decode, or give DALI's first line."""
    for row in np.unique(rows):
        try:
            with Image.open(io.BytesIO(reader.read(int(row)).tobytes())) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels")
                image.load()
        except InputError as problem:
            return problem
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
            return InputError(
                f"{reader.where(int(row))}: expected a whole image, got one that does not decode ({problem}); "
                "run python -m shards verify, replace the raw file and pack again (or pack with --skip-bad)"
            )
    return error
