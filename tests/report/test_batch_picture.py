"""The picture of a batch: its images against the definition of the augmentation, its words, its command's errors."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from launch.train import main
from tacaf.data.augment import GRAY, AugmentConfig, Parameters, draw_parameters, reference, resize
from tacaf.data.config import DataConfig
from tacaf.data.index import ShardIndex, select_training
from tacaf.data.plan import Plan, PlanConfig
from tacaf.data.reader import BadSampleError, ShardReader
from tacaf.report.batch_picture import IDENTITIES, IMAGES, _bands, _size, batch_picture, describe_place, describe_values
from tacaf.report.pictures import pixels
from tacaf.vocabulary import Branch

SEED = 3
SIZE = AugmentConfig(height=160, width=80, pad=4)  # shown as it is, neither reduced nor enlarged


@pytest.fixture(scope="module")
def index(sysu_shards) -> ShardIndex:
    return ShardIndex.open(sysu_shards)


def config_of(shards, augment=SIZE, **plan) -> DataConfig:
    make_up = PlanConfig(**{"identities_per_batch": 6, "images_per_identity": 5, **plan})
    return DataConfig(shards=str(shards), plan=make_up, augment=augment, threads=1)


def plan_of(index, config: DataConfig) -> Plan:
    return Plan(select_training(index, config.split), config.plan, SEED)


def picture_of(index, config: DataConfig) -> Image.Image:
    return batch_picture(index, plan_of(index, config), config, report=pytest.fail)


@pytest.mark.parametrize("space", ["normalized", "raw"])
def test_images_are_the_stored_ones_and_those_of_the_definition(index, sysu_shards, space):
    config = config_of(sysu_shards, SIZE.model_copy(update={"channel_augment_space": space}))
    plan, reader = plan_of(index, config), ShardReader(index)
    bands, batch = _bands(index, plan, config, pytest.fail), plan.global_batch(0, 0)
    drawn = draw_parameters(config.augment, SEED, 0, 0, batch.position_B, batch.branch_B)
    labels = list(dict.fromkeys(batch.label_B.tolist()))[:IDENTITIES]
    assert list(bands) == plan.training_set.pid_I[labels].tolist()
    for label, band in zip(labels, bands.values(), strict=True):
        assert list(band) == list(Branch)
        for branch, images in band.items():
            places = np.flatnonzero((batch.label_B == label) & (batch.branch_B == branch))[:IMAGES]
            for place, shown in zip(places.tolist(), images, strict=True):
                stored = reader.pixels(int(batch.row_B[place]))
                np.testing.assert_array_equal(shown.before_HWC, resize(stored, 160, 80))
                wanted = pixels(torch.from_numpy(reference(stored, config.augment, drawn, place)))
                # Two decoders and two ways of resizing differ by some levels at edges.
                assert np.abs(shown.after_HWC.astype(int) - wanted).mean() < 2
                assert str(index.columns["camid"][batch.row_B[place]]) in shown.source


def test_every_image_has_a_place_of_its_own_in_the_picture(index, sysu_shards):
    config = config_of(sysu_shards, identities_per_batch=2, images_per_identity=2)
    bands = _bands(index, plan_of(index, config), config, pytest.fail)
    drawn = np.asarray(picture_of(index, config))
    beginnings = np.lib.stride_tricks.sliding_window_view(drawn[: 1 - 160, :, 0], 8, axis=1)
    corners = set()
    for shown in (shown for band in bands.values() for images in band.values() for shown in images):
        for image in (shown.before_HWC, shown.after_HWC):
            candidates = np.argwhere((beginnings == image[0, :8, 0]).all(axis=-1)).tolist()
            found = [(y, x) for y, x in candidates if np.array_equal(drawn[y : y + 160, x : x + 80], image)]
            assert found
            corners.update(found)
    assert len(corners) == 2 * 3 * 2 * 2, "identities, branches, images, before and after"


def test_without_channel_augmentation_there_are_two_branches(index, sysu_shards):
    config = config_of(sysu_shards, channel_augment=False)
    bands = _bands(index, plan_of(index, config), config, pytest.fail)
    assert {tuple(band) for band in bands.values()} == {(Branch.VISIBLE, Branch.INFRARED)}


def test_two_pictures_of_a_batch_are_equal_and_another_seed_gives_another(index, sysu_shards):
    config = config_of(sysu_shards)
    first, again = picture_of(index, config), picture_of(index, config)
    assert first.tobytes() == again.tobytes()
    other = Plan(select_training(index, config.split), config.plan, SEED + 1)
    assert batch_picture(index, other, config, report=pytest.fail).tobytes() != first.tobytes()


@pytest.mark.parametrize(
    ("real", "shown"),
    [
        ((160, 80), (160, 80)),
        ((288, 144), (288, 144)),
        ((96, 48), (192, 96)),
        ((32, 16), (160, 80)),
        ((576, 288), (288, 144)),
        ((4096, 16), (288, 1)),
        ((40, 4096), (3, 288)),
    ],
)
def test_large_images_are_reduced_and_small_ones_enlarged(real, shown):
    assert _size(*real) == shown


def test_words_say_what_was_done():
    copies = np.zeros((3, 3), dtype=np.float32)
    copies[:, 1] = 1
    drawn = Parameters(
        crop_B2=np.array([[0, 0], [-3, 10], [1, -1]], dtype=np.int32),
        mirror_B=np.array([0, 1, 0], dtype=np.int32),
        erase_anchor_B2=np.array([[0, 0], [5, 6], [0, 0]], dtype=np.int32),
        erase_shape_B2=np.array([[0, 0], [7, 8], [0, 0]], dtype=np.int32),
        channel_BCC=np.stack([np.eye(3, dtype=np.float32), copies, np.tile(GRAY, (3, 1))]),
    )
    assert [describe_place(drawn, place) for place in range(3)] == ["crop +0 +0", "crop -3 +10, mirrored", "crop +1 -1"]
    assert [describe_values(drawn, place) for place in range(3)] == ["channels kept", "green only, erased", "gray"]


def test_an_image_that_cannot_be_used_is_named(sysu_shards, tmp_path):
    copy = tmp_path / "set"
    copy.mkdir()
    for path in sysu_shards.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(sysu_shards)).parent.mkdir(exist_ok=True)
            (copy / path.relative_to(sysu_shards)).write_bytes(path.read_bytes())
    index, config = ShardIndex.open(copy), config_of(copy)
    row = int(plan_of(index, config).global_batch(0, 0).row_B[0])
    with (copy / index.shards[0].name).open("r+b") as shard:
        shard.seek(int(index.columns["offset"][row]))
        shard.write(bytes(int(index.columns["size"][row])))
    with pytest.raises(BadSampleError) as error:
        picture_of(index, config)
    assert (error.value.row, index.key(row) in str(error.value)) == (row, True)


@pytest.fixture
def dry_run(sysu_shards, tmp_path):
    """The words of a dry run whose model and batch are small."""
    settings = [f"run={tmp_path}/run", f"data.shards={sysu_shards}", "model.backbone.width=8", "data.threads=1"]
    return ["--config", "launch/configs/demo.yaml", *(word for one in settings for word in ("--set", one)), "--dry-run"]


@pytest.mark.slow
def test_the_command_draws_the_batch_and_writes_nothing_else(dry_run, tmp_path, capsys):
    path = tmp_path / "batch.PNG"
    assert main([*dry_run, "--show-batch", str(path)]) == 0
    assert "training set" in capsys.readouterr().out
    with Image.open(io.BytesIO(path.read_bytes())) as picture:
        assert picture.format == "PNG"
        assert picture.height > IDENTITIES * 2 * 192  # the demo's 96 pixels, twice
    assert [found.name for found in tmp_path.iterdir()] == ["batch.PNG"]


@pytest.mark.parametrize("name", ["batch.jpg", "batch", "png", ""])
def test_a_name_of_another_kind_is_refused_before_anything_is_read(name, capsys):
    assert main(["--config", "absent.yaml", "--dry-run", "--show-batch", name]) == 2
    said = capsys.readouterr().err
    assert "--show-batch" in said
    assert repr(name) in said
    assert "absent.yaml" not in said


def test_a_picture_is_for_a_dry_run(capsys):
    assert main(["--config", "launch/configs/demo.yaml", "--show-batch", "batch.png"]) == 2
    assert "--dry-run" in capsys.readouterr().err


def test_a_picture_that_cannot_be_written_is_one_line(dry_run, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "file" / "batch.png", tmp_path / "folder.png"):
        assert main([*dry_run, "--show-batch", str(path)]) == 2
        said = capsys.readouterr().err
        assert str(path) in said
        assert len(said.splitlines()) == 1
