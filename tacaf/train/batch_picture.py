"""A picture of the first batch of a run: every branch as it is stored, and as the network sees it.

It needs neither DALI nor a GPU: the definition of the augmentation runs (`tacaf.data.augment.reference`), with the
parameters that the training will draw. The training's own decoders may differ by some grey levels.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tacaf.data.augment import draw_parameters, reference, resize
from tacaf.data.index import ShardIndex, select_training
from tacaf.data.plan import Plan
from tacaf.data.reader import ShardReader
from tacaf.files import shown, write_whole
from tacaf.images import MEAN, STD
from tacaf.train.config import Config
from tacaf.vocabulary import Branch, InputError

FORMATS = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}
COLUMNS = 12  # images of a branch at most
HEIGHT = 192  # pixels of an image in the picture
MARGIN, HEAD, GAP = 150, 22, 4
NAMES = {
    Branch.VISIBLE: "visible",
    Branch.AUGMENTED: "visible again,\nchannels exchanged",
    Branch.INFRARED: "infrared",
}


def check_picture(path: Path) -> None:
    """InputError unless the name says an image format that is written."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(
            f"--show-batch: expected a file name that ends with {', '.join(FORMATS)}, got {shown(path)}; rename it"
        )


def save_batch_picture(config: Config, path: Path) -> str:
    """Draw the first images of step 0 of epoch 0 into `path`, and say what is on it. InputError as a training gives."""
    check_picture(path)
    index = ShardIndex.open(config.data.shards, config.data.remote)
    plan = Plan(select_training(index, config.data.split), config.data.plan, config.seed)
    batch, augment, reader = plan.global_batch(0, 0), config.data.augment, ShardReader(index)
    drawn = draw_parameters(augment, config.seed, 0, 0, batch.position_B, batch.branch_B)
    rows: list[tuple[str, list[np.ndarray]]] = []
    names: list[str] = []
    for branch in plan.config.branches:
        places = np.flatnonzero(batch.branch_B == branch)[:COLUMNS]
        stored = [reader.pixels(int(row)) for row in batch.row_B[places]]
        names = names or [str(int(index.columns["pid"][row])) for row in batch.row_B[places]]
        if branch != Branch.AUGMENTED:  # the same images as the visible branch
            resized = [resize(pixels_HWC, augment.height, augment.width) for pixels_HWC in stored]
            rows.append((f"{NAMES[branch]},\nas stored", resized))
        pairs = zip(stored, places.tolist(), strict=True)
        rows.append((f"{NAMES[branch]},\nas trained", [_seen(reference(one, augment, drawn, at)) for one, at in pairs]))
    picture = _grid(rows, names, augment.height, augment.width)
    data = io.BytesIO()
    picture.save(data, FORMATS[path.suffix.lower()], quality=90)
    write_whole(path, data.getvalue())
    return f"the first {len(names)} images of each branch of the first batch: {shown(path)}"


def _seen(image_CHW: np.ndarray) -> np.ndarray:
    """Normalised values as uint8 H x W x 3; what lies outside of 0 to 255 is cut off."""
    return np.round(255 * (image_CHW.transpose(1, 2, 0) * STD + MEAN)).clip(0, 255).astype(np.uint8)


def _grid(rows: list[tuple[str, list[np.ndarray]]], names: list[str], height: int, width: int) -> Image.Image:
    """A row of images for each label, and the identity above each column."""
    shape = (max(1, round(HEIGHT * width / height)), HEIGHT)
    across, down = shape[0] + GAP, shape[1] + GAP
    sheet = Image.new("RGB", (MARGIN + across * len(names), HEAD + down * len(rows)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, name in enumerate(names):
        pen.text((MARGIN + column * across, 4), f"pid {name}", "black", font)
    for number, (label, images) in enumerate(rows):
        top = HEAD + number * down
        pen.multiline_text((6, top + shape[1] // 2 - 20), label, "black", font)
        for column, pixels_HWC in enumerate(images):
            sheet.paste(Image.fromarray(pixels_HWC).resize(shape), (MARGIN + column * across, top))
    return sheet
