"""The DALI graph against the references pixel by pixel, the same batches for all ranks, exact resume, damage named."""

import io
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tacaf.data.augment import MEAN, STD, AugmentConfig, draw_parameters, normalise, reference
from tacaf.data.index import ShardIndex, select_training
from tacaf.data.pipeline import EvaluationPipeline, TrainingPipeline
from tacaf.data.plan import Plan, PlanConfig
from tacaf.data.reader import ShardReader
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
    return ShardIndex(index.folder, index.name, index.sha256, index.splits, index.locations, [path], columns)


@pytest.mark.parametrize("space", ["normalized", "raw"])
def test_every_operation_after_the_resize_is_the_reference(sysu_shards, tmp_path, plan, space):
    index = lossless(sysu_shards, tmp_path, SIZE.height, SIZE.width)
    config = SIZE.model_copy(update={"channel_augment_space": space})
    batch = next(TrainingPipeline(index, plan, config, start=(1, 1)))
    drawn = draw_parameters(config, plan.seed, 1, 1, batch.position_B.numpy(), batch.branch_B.numpy())
    assert drawn.mirror_B.any(), "the batch must try every operation"
    assert drawn.erase_shape_B2.any()
    for place, row in enumerate(batch.row_B.tolist()):
        expected = reference(decoded(index, row), config, drawn, place)
        assert np.abs(batch.images_BCHW[place].numpy() - expected).max() < 1e-4, f"image {place}"


def test_resize_is_the_reference_within_a_level(sysu_shards, tmp_path, plan):
    index = lossless(sysu_shards, tmp_path, 61, 33)
    config = SIZE.model_copy(update={"erase": 0.0})
    batch = next(TrainingPipeline(index, plan, config))
    drawn = draw_parameters(config, plan.seed, 0, 0, batch.position_B.numpy(), batch.branch_B.numpy())
    differences = [
        np.abs(batch.images_BCHW[place].numpy() - reference(decoded(index, row), config, drawn, place))
        for place, row in enumerate(batch.row_B.tolist())
    ]
    assert np.max(differences) < 1.01 * LEVEL
    assert np.mean(differences) < 0.05 * LEVEL


def test_jpegs_are_the_reference_within_a_few_levels(index, plan):
    batch = next(TrainingPipeline(index, plan, SIZE))
    drawn = draw_parameters(SIZE, plan.seed, 0, 0, batch.position_B.numpy(), batch.branch_B.numpy())
    for place, row in enumerate(batch.row_B.tolist()):
        expected = reference(decoded(index, row), SIZE, drawn, place)
        assert np.abs(batch.images_BCHW[place].numpy() - expected).mean() < 1.0 * LEVEL


def test_ranks_hold_the_same_pixels_as_one_process(index, plan):
    whole = next(TrainingPipeline(index, plan, SIZE))
    parts = [next(TrainingPipeline(index, plan, SIZE, rank=rank, ranks=2)) for rank in range(2)]
    order = torch.argsort(torch.cat([part.position_B for part in parts]))
    assert torch.equal(torch.cat([part.images_BCHW for part in parts])[order], whole.images_BCHW)
    assert torch.equal(torch.cat([part.label_B for part in parts])[order], whole.label_B)


def test_resuming_gives_the_same_next_batches(index, plan):
    running = TrainingPipeline(index, plan, SIZE, steps_per_epoch=3)
    batches = [next(running) for _ in range(5)]
    assert [(batch.epoch, batch.step) for batch in batches] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    resumed = TrainingPipeline(index, plan, SIZE, start=(0, 2), steps_per_epoch=3)
    for batch in batches[2:]:
        again = next(resumed)
        assert (again.epoch, again.step) == (batch.epoch, batch.step)
        assert torch.equal(again.images_BCHW, batch.images_BCHW)
        assert torch.equal(again.row_B, batch.row_B)


def test_batches_stay_what_they_were(index, plan):
    running = TrainingPipeline(index, plan, SIZE)
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
    path = shutil.copy(index.shards[int(index.columns["shard"][row])], tmp_path / "broken.tar")
    offset, size = int(index.columns["offset"][row]), int(index.columns["size"][row])
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data[:size].ljust(size, b"\0"))
    shards = list(index.shards)
    shards[int(index.columns["shard"][row])] = path
    return ShardIndex(index.folder, index.name, index.sha256, index.splits, index.locations, shards, index.columns)


@pytest.mark.parametrize("kind", ["truncated", "not an image"])
def test_a_bad_image_is_named(index, tmp_path, plan, kind):
    row = int(plan.global_batch(0, 0).row_B[3])
    data = ShardReader(index).read(row).tobytes()
    broken = with_bytes(index, tmp_path, row, data[: len(data) // 3] if kind == "truncated" else b"nothing of the kind")
    with pytest.raises(InputError, match=index.key(row)) as caught:
        next(TrainingPipeline(broken, plan, SIZE))
    assert "broken.tar" in str(caught.value)


def test_the_reader_can_be_sent_to_a_worker(index):
    reader = ShardReader(index)
    reader.read(0)
    assert (pickle.loads(pickle.dumps(reader)).read(0) == reader.read(0)).all()
