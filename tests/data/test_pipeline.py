"""The DALI graph against its references pixel by pixel, the same batches on all ranks, and exact resume."""

import gc
import io
import shutil
import threading
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from nvidia.dali import Pipeline, fn
from PIL import Image

from tacaf.data.augment import draw_parameters, normalise, reference
from tacaf.data.config import ReadingConfig
from tacaf.data.dali_graph import crop, decode
from tacaf.data.evaluation_pipeline import EvaluationPipeline
from tacaf.data.index import ShardIndex
from tacaf.data.reader import ShardReader
from tacaf.data.storage import File
from tacaf.data.training_pipeline import TrainingPipeline
from tacaf.data.training_source import TrainingSource
from tacaf.images import MEAN
from tacaf.vocabulary import InputError
from tests.data.pipelines import LEVEL, SIZE, broken_set


def decoded(index: ShardIndex, row: int) -> np.ndarray:
    with Image.open(io.BytesIO(ShardReader(index).read(row).tobytes())) as image:
        return np.asarray(image.convert("RGB"))


def lossless(sysu_shards, folder, height, width):
    """The set with every image as an uncompressed BMP of one size, so that decoders and resizing cannot differ."""
    copy = shutil.copytree(sysu_shards, folder / "set")
    index = ShardIndex.open(copy)
    reader, columns = ShardReader(index), {name: np.array(column) for name, column in index.columns.items()}
    blob = bytearray()
    for row in range(len(index)):
        buffer = io.BytesIO()
        with Image.open(io.BytesIO(reader.read(row).tobytes())) as image:
            image.convert("RGB").resize((width, height)).save(buffer, "BMP")
        columns["shard"][row], columns["offset"][row], columns["size"][row] = 0, len(blob), len(buffer.getvalue())
        blob += buffer.getvalue()
    path = folder / "images.bin"
    path.write_bytes(bytes(blob))
    return replace(index, shards=[File(str(path), path.stat().st_size, "")], columns=columns)


@pytest.mark.parametrize("space", ["normalized", "raw"])
def test_every_operation_after_the_resize_is_the_reference(sysu_shards, tmp_path, plan, space):
    index = lossless(sysu_shards, tmp_path, SIZE.height, SIZE.width)
    config = SIZE.model_copy(update={"channel_augment_space": space})
    batch = next(TrainingPipeline(index, TrainingSource(plan, config), start=(1, 1)))
    drawn = draw_parameters(config, plan.seed, 1, 1, batch.position_B.numpy(), batch.branch_B.numpy())
    assert drawn.mirror_B.any(), "the batch must try every operation"
    assert drawn.erase_shape_B2.any()
    for place, row in enumerate(batch.row_B.tolist()):
        expected = reference(decoded(index, row), config, drawn, place)
        assert np.abs(batch.images_BCHW[place].numpy() - expected).max() < 1e-4, f"image {place}"


def test_the_slice_takes_its_arguments_from_the_cpu():
    """In the graph for a GPU, which builds without one. An argument on the GPU would be copied back at every run."""
    parameters = ([np.zeros(2, np.int32)], [np.zeros((), np.int32)])
    with Pipeline(batch_size=1, num_threads=1, device_id=0):
        encoded = fn.external_source(source=lambda: [np.zeros(4, np.uint8)])
        corner, mirror = fn.external_source(source=lambda: parameters, num_outputs=2)
        cropped = crop(decode(encoded, SIZE.height, SIZE.width, 0), SIZE.height, SIZE.width, corner, mirror)
    image, *arguments = cropped.source.inputs[0].source.inputs
    assert image.device == "gpu"
    assert [argument.device for argument in arguments] == ["cpu"], "the corner alone; the shape is a named constant"


def test_resize_is_the_reference_within_a_level(sysu_shards, tmp_path, plan):
    index = lossless(sysu_shards, tmp_path, 61, 33)
    config = SIZE.model_copy(update={"erase": 0.0})
    batch = next(TrainingPipeline(index, TrainingSource(plan, config)))
    drawn = draw_parameters(config, plan.seed, 0, 0, batch.position_B.numpy(), batch.branch_B.numpy())
    differences = [
        np.abs(batch.images_BCHW[place].numpy() - reference(decoded(index, row), config, drawn, place))
        for place, row in enumerate(batch.row_B.tolist())
    ]
    assert np.max(differences) < 1.01 * LEVEL
    assert np.mean(differences) < 0.05 * LEVEL


def test_jpegs_are_the_reference_within_a_few_levels(index, plan):
    batch = next(TrainingPipeline(index, TrainingSource(plan, SIZE)))
    drawn = draw_parameters(SIZE, plan.seed, 0, 0, batch.position_B.numpy(), batch.branch_B.numpy())
    for place, row in enumerate(batch.row_B.tolist()):
        expected = reference(decoded(index, row), SIZE, drawn, place)
        assert np.abs(batch.images_BCHW[place].numpy() - expected).mean() < 1.0 * LEVEL


def test_ranks_hold_the_same_pixels_as_one_process(index, plan):
    whole = next(TrainingPipeline(index, TrainingSource(plan, SIZE)))
    parts = [next(TrainingPipeline(index, TrainingSource(plan, SIZE, rank=rank, ranks=2))) for rank in range(2)]
    order = torch.argsort(torch.cat([part.position_B for part in parts]))
    assert torch.equal(torch.cat([part.images_BCHW for part in parts])[order], whole.images_BCHW)
    assert torch.equal(torch.cat([part.label_B for part in parts])[order], whole.label_B)


def test_resuming_gives_the_same_next_batches(index, plan):
    running = TrainingPipeline(index, TrainingSource(plan, SIZE, 3))
    batches = [next(running) for _ in range(5)]
    assert [(batch.epoch, batch.step) for batch in batches] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    resumed = TrainingPipeline(index, TrainingSource(plan, SIZE, 3), start=(0, 2))
    for batch in batches[2:]:
        again = next(resumed)
        assert (again.epoch, again.step) == (batch.epoch, batch.step)
        assert torch.equal(again.images_BCHW, batch.images_BCHW)
        assert torch.equal(again.row_B, batch.row_B)


def test_batches_stay_what_they_were(index, plan):
    running = TrainingPipeline(index, TrainingSource(plan, SIZE))
    first = next(running)
    kept = first.images_BCHW.clone()
    for _ in range(4):
        next(running)
    assert torch.equal(first.images_BCHW, kept), "DALI's buffers are used again; the batch must own its pixels"


@pytest.mark.parametrize("ranks", [1, 2])
def test_evaluation_shows_every_image_once(index, ranks):
    rows = index.rows_of(index.pids_of("test"))
    pipelines = [EvaluationPipeline(index, rows, 48, 24, batch_size=7, rank=rank, ranks=ranks) for rank in range(ranks)]
    seen = [
        (row, image)
        for pipeline in pipelines
        for images, found in pipeline
        for row, image in zip(found.tolist(), images, strict=True)
    ]
    assert sorted(row for row, _ in seen) == rows.tolist()
    row, image = seen[3]
    expected = normalise(np.asarray(Image.fromarray(decoded(index, row)).resize((24, 48), Image.Resampling.BILINEAR)))
    assert abs(float(image.mean()) - float(expected.mean())) < 0.05
    assert MEAN.shape == (3,)


@pytest.mark.parametrize("kind", ["stop", "replace"])
def test_workers_are_threads_that_end_with_the_pipeline(index, tmp_path, plan, kind):
    """A process could be killed alone, by the signal that stops the run or for lack of memory, and outlive the run."""
    children, threads = psutil.Process().children(recursive=True), set(threading.enumerate())
    row = int(plan.global_batch(0, 1).row_B[0])
    running = TrainingPipeline(
        broken_set(index, tmp_path, [row]),
        TrainingSource(plan, SIZE),
        ReadingConfig(workers=3, on_bad_sample=kind, bad_sample_share=0.5),
        report=lambda text: None,
    )
    if kind == "stop":
        with pytest.raises(InputError, match=index.key(row)):
            list(running)
    else:
        undisturbed = TrainingPipeline(index, TrainingSource(plan, SIZE))
        assert torch.equal(next(running).images_BCHW, next(undisturbed).images_BCHW)
        assert not torch.equal(next(running).images_BCHW, next(undisturbed).images_BCHW)
    started = set(threading.enumerate()) - threads
    assert [thread for thread in started if thread.name == "read"]
    assert psutil.Process().children(recursive=True) == children
    del running
    gc.collect()
    for thread in started:
        if thread.name == "read":
            thread.join(60)
            assert not thread.is_alive()


def test_a_batch_says_how_long_it_was_waited_for(index, plan):
    began = time.perf_counter()
    wait_s = next(TrainingPipeline(index, TrainingSource(plan, SIZE))).wait_s
    assert 0 < wait_s < time.perf_counter() - began
