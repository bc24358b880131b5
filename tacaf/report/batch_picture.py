"""Drawing a training batch: each image as it is stored, and below it as the model would see it.

Source: ours. The images come from the training pipeline, on a CPU, so the picture shows exactly what a training reads.
C = 3 channels, H x W pixels.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tacaf.data.augment import GRAY, Parameters, draw_parameters, resize
from tacaf.data.config import DataConfig
from tacaf.data.index import ShardIndex
from tacaf.data.plan import Plan
from tacaf.data.training_pipeline import TrainingPipeline
from tacaf.data.training_source import TrainingSource
from tacaf.report.pictures import pixels
from tacaf.vocabulary import Branch

IDENTITIES = 4  # shown; a batch may have thousands
IMAGES = 4  # of an identity and branch
LARGEST, SMALLEST = 288, 160  # limits of a shown image's height in pixels; others are reduced or enlarged

HEADING = "Above: the stored image, resized. Below: what the model sees, after crop, mirroring, channels and erasing."
TITLES = {
    Branch.VISIBLE: "visible (V0)",
    Branch.AUGMENTED: "visible, channels exchanged (V1)",
    Branch.INFRARED: "infrared (I)",
}
_CELL = 124  # smallest width in pixels, so that the text below an image fits
_MARGIN, _GAP, _LINE = 16, 28, 14
_WORD, _TITLE = 11, 15  # font sizes
_PAPER, _INK = (255, 255, 255), (40, 40, 40)


class Shown(NamedTuple):
    """One image of the batch, before and after augmentation."""

    source: str  # camera and number
    changes: tuple[str, str]  # crop and mirroring, then changes of values
    before_HWC: np.ndarray  # uint8, only resized
    after_HWC: np.ndarray  # uint8, what the model sees


Band = dict[Branch, list[Shown]]  # of one identity


def batch_picture(index: ShardIndex, plan: Plan, config: DataConfig, report: Callable[[str], None]) -> Image.Image:
    """A picture of the first batch: its first identities, with up to four images of each in every branch.

    It does not depend on the number of ranks. `report` gets the pipeline's warnings, such as that an image was
    replaced. Raises InputError for an image that cannot be used, as in the training.
    """
    return _drawn(_bands(index, plan, config, report))


def _bands(index: ShardIndex, plan: Plan, config: DataConfig, report: Callable[[str], None]) -> dict[int, Band]:
    """The shown images by pid, in the batch's order."""
    batches = TrainingPipeline(
        index,
        TrainingSource(plan, config.augment),
        config.model_copy(update={"workers": 0, "prefetch": 1}),  # only one batch is needed
        report=report,
    )
    batch = next(batches)
    position_B, branch_B, label_B = batch.position_B.numpy(), batch.branch_B.numpy(), batch.label_B.numpy()
    drawn = draw_parameters(config.augment, plan.seed, batch.epoch, batch.step, position_B, branch_B)
    bands: dict[int, Band] = {}
    for label in list(dict.fromkeys(label_B.tolist()))[:IDENTITIES]:
        band = bands[int(plan.training_set.pid_I[label])] = {}
        for branch in plan.config.branches:
            places = np.flatnonzero((label_B == label) & (branch_B == branch))[:IMAGES].tolist()
            band[branch] = [
                Shown(
                    f"camera {index.columns['camid'][row]}, image {index.columns['number'][row]}",
                    (describe_place(drawn, place), describe_values(drawn, place)),
                    resize(batches.reader.pixels(row), config.augment.height, config.augment.width),
                    pixels(batch.images_BCHW[place]),
                )
                for place, row in ((place, int(batch.row_B[place])) for place in places)
            ]
    return bands


def describe_place(drawn: Parameters, place: int) -> str:
    """Where the crop was taken, in pixels down and to the right, and whether it was mirrored."""
    down, right = drawn.crop_B2[place].tolist()
    return f"crop {down:+d} {right:+d}" + (", mirrored" if drawn.mirror_B[place] else "")


def describe_values(drawn: Parameters, place: int) -> str:
    """How the values were changed: the channel operation, and whether a box was erased."""
    matrix_CC = drawn.channel_BCC[place]
    if not (matrix_CC == matrix_CC[0]).all():  # the identity
        channels = "channels kept"
    elif (matrix_CC[0] == GRAY).all():
        channels = "gray"
    else:
        channels = f"{('red', 'green', 'blue')[int(matrix_CC[0].argmax())]} only"
    return channels + (", erased" if drawn.erase_shape_B2[place].all() else "")


def _drawn(bands: dict[int, Band]) -> Image.Image:
    """The picture: a band per identity, with the branches side by side."""
    first = next(iter(bands.values()))
    height, width = _size(*next(iter(first.values()))[0].before_HWC.shape[:2])
    cell, columns = max(width, _CELL) + 4, {branch: len(images) for branch, images in first.items()}
    tall = 2 * _LINE + 2 * (height + _LINE) + 2 * _LINE  # of a band: pid, image, text, image, two lines of text
    word, title = ImageFont.load_default(_WORD), ImageFont.load_default(_TITLE)
    wide = cell * sum(columns.values()) + _GAP * (len(columns) - 1)
    size = (2 * _MARGIN + max(wide, round(title.getlength(HEADING))), 4 * _LINE + len(bands) * tall)
    picture = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(picture)
    pen.text((_MARGIN, _LINE // 2), HEADING, _INK, title)
    top = 3 * _LINE
    for pid, band in bands.items():
        left = _MARGIN
        for branch, images in band.items():
            pen.text((left, top), f"{TITLES[branch]}, identity {pid}", _INK, title)
            for place, shown in enumerate(images):
                x, y = left + place * cell, top + 2 * _LINE
                picture.paste(_fitted(shown.before_HWC, height, width), (x, y))
                pen.text((x, y + height), shown.source, _INK, word)
                y += height + _LINE
                picture.paste(_fitted(shown.after_HWC, height, width), (x, y))
                pen.text((x, y + height), "\n".join(shown.changes), _INK, word, spacing=1)
            left += columns[branch] * cell + _GAP
        top += tall
    return picture


def _size(height: int, width: int) -> tuple[int, int]:
    """Height and width of a shown image: reduced to LARGEST, or enlarged by a whole factor to at least SMALLEST."""
    if max(height, width) > LARGEST:
        share = LARGEST / max(height, width)
        return max(1, round(height * share)), max(1, round(width * share))
    times = -(-SMALLEST // height) if height < SMALLEST else 1
    return height * times, width * times


def _fitted(image_HWC: np.ndarray, height: int, width: int) -> Image.Image:
    image = Image.fromarray(image_HWC)
    reduced = image.height > height
    return image.resize((width, height), Image.Resampling.BOX if reduced else Image.Resampling.NEAREST)
