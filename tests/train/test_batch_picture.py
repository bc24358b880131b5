"""--show-batch: the picture holds what is stored and what the augmentation makes of it, and is the same every time."""

import numpy as np
import pytest
from PIL import Image

from tacaf.data.augment import draw_parameters, reference, resize
from tacaf.data.index import ShardIndex, select_training
from tacaf.data.plan import Plan
from tacaf.data.reader import ShardReader
from tacaf.images import MEAN, STD
from tacaf.train.batch_picture import COLUMNS, GAP, HEAD, HEIGHT, MARGIN, save_batch_picture
from tacaf.train.config import load_config
from tacaf.vocabulary import Branch, InputError
from tests.train.finished import DEMO

WIDTH = HEIGHT // 2


def config_of(shards, *more):
    augment = f"data.augment={{height: {HEIGHT}, width: {WIDTH}, pad: 4}}"
    return load_config(DEMO, [f"data.shards={shards}", "data.plan.identities_per_batch=4", augment, *more])


def tile(sheet_HWC, row, column):
    top, left = HEAD + row * (HEIGHT + GAP), MARGIN + column * (WIDTH + GAP)
    return sheet_HWC[top : top + HEIGHT, left : left + WIDTH]


def test_rows_are_branches_as_stored_and_as_trained(sysu_shards, tmp_path):
    config = config_of(sysu_shards)
    said = save_batch_picture(config, tmp_path / "batch.png")
    assert str(tmp_path / "batch.png") in said
    sheet_HWC = np.asarray(Image.open(tmp_path / "batch.png"))
    assert sheet_HWC.shape == (HEAD + 5 * (HEIGHT + GAP), MARGIN + COLUMNS * (WIDTH + GAP), 3)
    index = ShardIndex.open(str(sysu_shards))
    batch = Plan(select_training(index, config.data.split), config.data.plan, config.seed).global_batch(0, 0)
    drawn = draw_parameters(config.data.augment, config.seed, 0, 0, batch.position_B, batch.branch_B)
    for row, branch, trained in ((0, 0, False), (1, 0, True), (2, 1, True), (3, 2, False), (4, 2, True)):
        place = int(np.flatnonzero(batch.branch_B == Branch(branch))[5])
        pixels_HWC = ShardReader(index).pixels(int(batch.row_B[place]))
        expected_HWC = resize(pixels_HWC, HEIGHT, WIDTH).astype(float)
        if trained:
            seen_CHW = reference(pixels_HWC, config.data.augment, drawn, place)
            expected_HWC = (255 * (seen_CHW.transpose(1, 2, 0) * STD + MEAN)).clip(0, 255)
        assert np.abs(tile(sheet_HWC, row, 5) - expected_HWC).max() <= 0.6, (row, branch)


def test_without_the_augmented_branch_there_are_four_rows_and_again_the_same_bytes(sysu_shards, tmp_path):
    config = config_of(sysu_shards, "data.plan.channel_augment=false")
    for name in ("one.webp", "two.webp"):
        save_batch_picture(config, tmp_path / name)
    with Image.open(tmp_path / "one.webp") as sheet:
        assert sheet.size[1] == HEAD + 4 * (HEIGHT + GAP)
    assert (tmp_path / "one.webp").read_bytes() == (tmp_path / "two.webp").read_bytes()


def test_what_cannot_be_drawn_is_named_and_nothing_is_written(sysu_shards, tmp_path):
    with pytest.raises(InputError, match=r"--show-batch.*\.png.*batch\.gif"):
        save_batch_picture(config_of(sysu_shards), tmp_path / "batch.gif")
    with pytest.raises(InputError, match="absent"):
        save_batch_picture(config_of(tmp_path / "absent"), tmp_path / "batch.png")
    (tmp_path / "file").write_text("precious")
    with pytest.raises((InputError, OSError), match="file"):
        save_batch_picture(config_of(sysu_shards), tmp_path / "file" / "batch.png")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
