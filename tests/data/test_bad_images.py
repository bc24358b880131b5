"""Damaged and hostile images: each is named, or replaced by the next of its identity."""

import errno
import os
import struct
import zlib

import numpy as np
import pytest
import torch

from tacaf.data.augment import normalise
from tacaf.data.config import ReadingConfig
from tacaf.data.evaluation_pipeline import EvaluationPipeline
from tacaf.data.reader import ShardReader
from tacaf.data.training_pipeline import TrainingPipeline
from tacaf.data.training_source import TrainingSource
from tacaf.vocabulary import InputError
from tests.data.pipelines import SIZE, broken_set, with_bytes


@pytest.mark.parametrize("kind", ["truncated", "not an image"])
def test_a_bad_image_is_named(index, tmp_path, plan, kind):
    row = int(plan.global_batch(0, 0).row_B[3])
    data = ShardReader(index).read(row).tobytes()
    broken = with_bytes(index, tmp_path, row, data[: len(data) // 3] if kind == "truncated" else b"nothing of the kind")
    with pytest.raises(InputError, match=index.key(row)) as caught:
        next(TrainingPipeline(broken, TrainingSource(plan, SIZE)))
    assert "broken.tar" in str(caught.value)


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
