"""The DALI graph against the references pixel by pixel, the same batches for all ranks, exact resume, damage named."""

import errno
import gc
import io
import os
import pickle
import shutil
import struct
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from nvidia.dali import Pipeline, fn
from PIL import Image

from tacaf.data.augment import AugmentConfig, draw_parameters, normalise, reference
from tacaf.data.config import ReadingConfig
from tacaf.data.dali_graph import crop, decode
from tacaf.data.evaluation_pipeline import EvaluationPipeline
from tacaf.data.index import ShardIndex, select_training
from tacaf.data.plan import Plan, PlanConfig
from tacaf.data.reader import BadSampleError, ShardReader
from tacaf.data.storage import File
from tacaf.data.training_pipeline import TrainingPipeline
from tacaf.data.training_source import TrainingSource
from tacaf.images import MEAN, STD
from tacaf.vocabulary import InputError

LEVEL = 1 / (255 * STD.min())  # one of 256 levels after normalisation
SIZE = AugmentConfig(height=48, width=24, pad=4)


@pytest.fixture(scope="module")
def index(sysu_shards) -> ShardIndex:
    return ShardIndex.open(sysu_shards)


@pytest.fixture(scope="module")
def plan(index) -> Plan:
    return Plan(select_training(index, "trainval"), PlanConfig(identities_per_batch=4, images_per_identity=2), seed=5)


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


def with_bytes(index: ShardIndex, tmp_path, row: int, data: bytes) -> ShardIndex:
    """The same index with other bytes where this row's image lies."""
    shard = int(index.columns["shard"][row])
    path = shutil.copy(index.store.where(index.shards[shard].name), tmp_path / "broken.tar")
    offset, size = int(index.columns["offset"][row]), int(index.columns["size"][row])
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data[:size].ljust(size, b"\0"))
    shards = list(index.shards)
    shards[shard] = File(str(path), index.shards[shard].size, "")
    return replace(index, shards=shards)


@pytest.mark.parametrize("kind", ["truncated", "not an image"])
def test_a_bad_image_is_named(index, tmp_path, plan, kind):
    row = int(plan.global_batch(0, 0).row_B[3])
    data = ShardReader(index).read(row).tobytes()
    broken = with_bytes(index, tmp_path, row, data[: len(data) // 3] if kind == "truncated" else b"nothing of the kind")
    with pytest.raises(InputError, match=index.key(row)) as caught:
        next(TrainingPipeline(broken, TrainingSource(plan, SIZE)))
    assert "broken.tar" in str(caught.value)


def test_the_reader_can_be_sent_to_another_process(index):
    reader = ShardReader(index)
    reader.read(0)
    assert (pickle.loads(pickle.dumps(reader)).read(0) == reader.read(0)).all()


def broken_set(index: ShardIndex, tmp_path, rows: list[int]) -> ShardIndex:
    """The set with these rows' images cut in their headers."""
    for row in rows:
        data = ShardReader(index).read(row).tobytes()
        folder = tmp_path / str(row)
        folder.mkdir()
        index = with_bytes(index, folder, row, data[:30])
    return index


def test_a_bad_image_gives_way_to_the_next_of_its_identity(index, tmp_path, plan):
    bad = sorted({int(row) for row in plan.global_batch(0, 0).row_B[[3, -1]]} | {int(plan.global_batch(0, 2).row_B[0])})
    said: list[str] = []
    reading = ReadingConfig(on_bad_sample="replace", bad_sample_share=0.5)
    broken = broken_set(index, tmp_path, bad)
    pipeline = TrainingPipeline(broken, TrainingSource(plan, SIZE), reading, report=said.append)
    batches = [next(pipeline) for _ in range(3)]
    assert pipeline.replaced == len(bad) == len(said)
    for row, text in zip(sorted(bad), sorted(said), strict=True):
        assert index.key(row) in text
    assert "replaced so far: 1 images" in said[0]
    for step, batch in enumerate(batches):
        planned = plan.global_batch(0, step).row_B
        changed = np.isin(planned, bad)
        assert changed.any() == (batch.row_B.numpy() != planned).any()
        for row, other in zip(planned[changed], batch.row_B.numpy()[changed], strict=True):
            start, stop = plan.training_set.range_of(int(row))
            assert other not in bad
            assert start <= other < stop, "the same identity and modality"
    # other ranks, a resume, reading in other processes: the same images in the place of the bad ones
    sources = [TrainingSource(plan, SIZE, rank=rank, ranks=2) for rank in (0, 1)]
    parts = [TrainingPipeline(broken, source, reading, report=said.append) for source in sources]
    halves = [next(part) for part in parts]
    order = torch.argsort(torch.cat([half.position_B for half in halves]))
    assert torch.equal(torch.cat([half.images_BCHW for half in halves])[order], batches[0].images_BCHW)
    beside = reading.model_copy(update={"workers": 2})
    resumed = TrainingPipeline(broken, TrainingSource(plan, SIZE), beside, start=(0, 2), report=said.append)
    assert torch.equal(next(resumed).images_BCHW, batches[2].images_BCHW)


def test_two_bad_neighbours_give_way_to_the_third(index, tmp_path, plan):
    row = int(plan.global_batch(0, 0).row_B[0])
    start, stop = plan.training_set.range_of(row)
    place = (row - start + 1) % (stop - start) + start
    broken = broken_set(index, tmp_path, [row, place])
    reading = ReadingConfig(on_bad_sample="replace", bad_sample_share=0.5)
    pipeline = TrainingPipeline(broken, TrainingSource(plan, SIZE), reading, report=lambda text: None)
    assert int(next(pipeline).row_B[0]) == (row - start + 2) % (stop - start) + start


def test_too_many_bad_images_stop_after_all(index, tmp_path, plan):
    row = int(plan.global_batch(0, 0).row_B[0])
    pipeline = TrainingPipeline(
        broken_set(index, tmp_path, [row]),
        TrainingSource(plan, SIZE),
        ReadingConfig(on_bad_sample="replace", bad_sample_share=0.001),
        report=lambda text: None,
    )
    with pytest.raises(InputError, match=r"0\.1 % .*data\.bad_sample_share.* 1 of"):
        next(pipeline)


def test_an_identity_without_a_sound_image_stops(index, tmp_path, plan):
    start, stop = plan.training_set.range_of(int(plan.global_batch(0, 0).row_B[0]))
    pipeline = TrainingPipeline(
        broken_set(index, tmp_path, [*range(start, stop)]),
        TrainingSource(plan, SIZE),
        ReadingConfig(on_bad_sample="replace", bad_sample_share=0.5),
        report=lambda text: None,
    )
    with pytest.raises(InputError, match="no other image"):
        next(pipeline)


def giant_png() -> bytes:
    """A PNG whose header promises 60,000 x 60,000 pixels and whose body holds none."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 8) + b"IDAT"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (giant_png(), "60000 x 60000 pixels|decompression bomb"),
        (b"", "not an image in a known format"),
        (b"GIF89a" + bytes(100), "not an image in a known format"),
        (b"\xff\xd8\xff\xe0" + bytes(200), "does not decode"),
    ],
    ids=["giant", "empty", "another format", "a header alone"],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_hostile_images_are_named(index, tmp_path, plan, data, says, workers):
    row = int(plan.global_batch(0, 0).row_B[3])
    broken = with_bytes(index, tmp_path, row, data)
    with pytest.raises(InputError, match=says) as caught:
        next(TrainingPipeline(broken, TrainingSource(plan, SIZE), ReadingConfig(workers=workers)))
    assert index.key(row) in str(caught.value)
    with pytest.raises(InputError, match=index.key(row)):
        list(EvaluationPipeline(broken, np.array([row]), 48, 24))


def short_png(pixels_HWC: np.ndarray) -> bytes:
    """A PNG whose compressed data end, in good order, in the middle of the picture: Pillow shows the rest black."""
    height, width, _ = pixels_HWC.shape
    lines = b"".join(b"\0" + line.tobytes() for line in pixels_HWC[: height // 2])

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_dali_alone_refuses_is_decoded_without_it(index, tmp_path, plan, workers):
    row = int(plan.global_batch(0, 1).row_B[0])
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (48, 24, 3), dtype=np.uint8)
    odd = with_bytes(index, tmp_path, row, short_png(pixels_HWC))
    pixels_HWC[24:] = 0
    assert (ShardReader(odd).pixels(row) == pixels_HWC).all()
    seen = {}
    for images_BCHW, rows in EvaluationPipeline(odd, np.arange(len(index)), 48, 24, batch_size=5):
        seen |= dict(zip(rows.tolist(), images_BCHW, strict=True))
    assert list(seen) == list(range(len(index)))
    np.testing.assert_allclose(seen[row].numpy(), normalise(pixels_HWC).transpose(2, 0, 1), atol=1e-5)
    said: list[str] = []
    running = TrainingPipeline(odd, TrainingSource(plan, SIZE), ReadingConfig(workers=workers), report=said.append)
    undisturbed = TrainingPipeline(index, TrainingSource(plan, SIZE))
    for _ in range(3):
        batch, other = next(running), next(undisturbed)
        assert torch.equal(batch.row_B, other.row_B)
        changed = (batch.images_BCHW != other.images_BCHW).flatten(1).any(1)
        assert torch.equal(changed, batch.row_B == row)
    assert [index.key(row) in text for text in said] == [True]
    assert running.replaced == 0


def test_a_shard_that_lost_its_end_is_named(index, tmp_path, plan):
    shard = int(index.columns["shard"][int(plan.global_batch(0, 0).row_B[0])])
    path = tmp_path / "cut.tar"
    path.write_bytes(Path(index.store.where(index.shards[shard].name)).read_bytes()[:1000])
    shards = list(index.shards)
    shards[shard] = File(str(path), 1000, "")
    broken = replace(index, shards=shards)
    with pytest.raises(InputError, match=r"cut\.tar"):
        next(TrainingPipeline(broken, TrainingSource(plan, SIZE)))


@pytest.mark.parametrize("change", [3, -512, 10**9])
def test_a_wrong_offset_is_named(index, plan, change):
    row = int(plan.global_batch(0, 0).row_B[3])
    offset = np.array(index.columns["offset"])
    offset[row] += change
    columns = {**index.columns, "offset": offset}
    wrong = replace(index, columns=columns)
    with pytest.raises(InputError, match=rf"{index.key(row)}: .* offset {offset[row]}"):
        next(TrainingPipeline(wrong, TrainingSource(plan, SIZE)))


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


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_the_disk_cannot_read_is_named(index, plan, workers, monkeypatch):
    row = int(plan.global_batch(0, 0).row_B[3])
    bad, pread = int(index.columns["offset"][row]), os.pread

    def broken(handle: int, size: int, offset: int) -> bytes:
        if offset == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(handle, size, offset)

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(InputError, match="(?i)" + os.strerror(errno.EIO)) as caught:
        next(TrainingPipeline(index, TrainingSource(plan, SIZE), ReadingConfig(workers=workers)))
    assert index.key(row) in str(caught.value)


def test_a_shard_that_loses_its_end_while_in_use_is_named(index, tmp_path):
    """Reading a map past the end of its file would kill the process."""
    last = int(np.argmax(index.columns["offset"]))
    shard = int(index.columns["shard"][last])
    path = Path(shutil.copy(index.store.where(index.shards[shard].name), tmp_path / "shrinks.tar"))
    shards = list(index.shards)
    shards[shard] = File(str(path), index.shards[shard].size, "")
    reader = ShardReader(replace(index, shards=shards))
    reader.read(last)
    os.truncate(path, int(index.columns["offset"][last]) + 10)
    with pytest.raises(BadSampleError, match=r"shrinks\.tar.*\D10 bytes"):
        reader.read(last)


def test_a_reader_keeps_so_many_shards_open(sysu_shards_many):
    index = ShardIndex.open(sysu_shards_many)
    assert len(index.shards) > 2
    before = psutil.Process().num_fds()
    reader = ShardReader(index, 2)
    for row in np.unique(index.columns["shard"], return_index=True)[1].tolist() * 2:
        reader.read(row)
    assert psutil.Process().num_fds() == before + 2
    del reader
    assert psutil.Process().num_fds() == before
