"""Augmentation by channel relationship: draws every image's parameters, and defines each operation in plain NumPy.

resize -> pad with raw 0 -> crop -> flip -> normalise -> erase -> channel matrix (paper §2, CAJ; method §2). The DALI
graph in `dali_graph.py` and the tensor operations in `pixels.py` apply exactly these parameters; the functions below
define the operations, and tests compare the two.
B images, H x W pixels, C = 3 channels.
"""

from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from tacaf.draws import Stream, integers, uniform
from tacaf.images import MEAN, STD
from tacaf.settings import Settings
from tacaf.vocabulary import Branch

ERASE_FILL = np.array([0.4914, 0.4822, 0.4465], dtype=np.float32)  # CAJ, in normalised values
GRAY = np.array([0.2989, 0.5870, 0.1140], dtype=np.float32)
ERASE_TRIES = 100

Share = Annotated[float, Field(ge=0, le=1)]


class AugmentConfig(Settings):
    """Input size and the strength of each operation. The defaults are those of CAJ."""

    height: int = Field(288, ge=32, le=4096, description="Image height in pixels.")
    width: int = Field(144, ge=16, le=4096, description="Image width in pixels.")
    pad: int = Field(10, ge=0, le=4096, description="Black pixels added around the image before the random crop.")
    flip: float = Field(0.5, ge=0, le=1, description="Probability of a horizontal flip.")
    erase: float = Field(0.5, ge=0, le=1, description="Probability of channel erasing.")
    erase_area: tuple[Share, Share] = Field((0.02, 0.4), description="Range of the erased share of the image.")
    erase_aspect: float = Field(
        0.3,
        gt=0,
        le=1,
        description="The aspect ratio h/w of the erased box is drawn from this number to its reciprocal.",
    )
    gray: float = Field(
        0.5,
        ge=0,
        le=1,
        description=(
            "Three quarters of the infrared images get one channel in place of all three; probability that one of the"
            " others becomes gray instead of staying unchanged."
        ),
    )
    channel_augment_space: Literal["normalized", "raw"] = Field(
        "normalized", description="Values that the channel matrix is applied to: normalised (CAJ) or raw (ours)."
    )

    @model_validator(mode="after")
    def _rising(self) -> "AugmentConfig":
        low, high = self.erase_area
        if low > high:
            raise ValueError(f"erase_area: expected the smaller share first, got [{low:g}, {high:g}]; swap them")
        return self


class Parameters(NamedTuple):
    """The augmentation of each image of a batch."""

    crop_B2: np.ndarray  # int32, top left corner (y, x) of the crop in the unpadded image, -pad..pad
    mirror_B: np.ndarray  # int32, 0 or 1
    erase_anchor_B2: np.ndarray  # int32, (y, x) of the erased box
    erase_shape_B2: np.ndarray  # int32, (h, w) of it; 0 x 0 erases nothing
    channel_BCC: np.ndarray  # float32, x' = M x


def draw_parameters(
    config: AugmentConfig, seed: int, epoch: int, step: int, position_B: np.ndarray, branch_B: np.ndarray
) -> Parameters:
    """The parameters of the images at these positions of the global batch. A pure function of its arguments."""
    key = (seed, epoch, step)
    draw_B2 = np.arange(2)[None, :]
    crop_B2 = integers(2 * config.pad + 1, Stream.CROP, *key, position=position_B[:, None], draw=draw_B2) - config.pad
    mirror_B = uniform(Stream.FLIP, *key, position_B) < config.flip
    anchor_B2, shape_B2 = _draw_erasing(config, key, position_B)
    return Parameters(
        crop_B2.astype(np.int32),
        mirror_B.astype(np.int32),
        anchor_B2,
        shape_B2,
        _draw_channels(config, key, position_B, branch_B),
    )


def _draw_erasing(
    config: AugmentConfig, key: tuple[int, int, int], position_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (anchor, shape), redrawn until they fit inside the image; those that never fit erase nothing."""
    shape_B2 = np.zeros((len(position_B), 2), dtype=np.int32)
    open_B = uniform(Stream.ERASE, *key, position_B, 0) < config.erase
    low, high = config.erase_area
    for attempt in range(ERASE_TRIES):
        if not open_B.any():
            break
        position = position_B[open_B]
        area = (
            (low + (high - low) * uniform(Stream.ERASE, *key, position, 3 + 2 * attempt)) * config.height * config.width
        )
        flat = config.erase_aspect
        ratio = flat + (1 / flat - flat) * uniform(Stream.ERASE, *key, position, 4 + 2 * attempt)
        drawn = np.round(np.stack([np.sqrt(area * ratio), np.sqrt(area / ratio)], axis=1)).astype(np.int32)
        fits = (drawn < (config.height, config.width)).all(axis=1)
        where = np.flatnonzero(open_B)[fits]
        shape_B2[where] = drawn[fits]
        open_B[where] = False
    room_B2 = np.array([config.height, config.width]) - shape_B2 + 1  # corners from 0 to size - box, both inclusive
    draw_B2 = np.array([1, 2])[None, :]
    anchor_B2 = integers(room_B2, Stream.ERASE, *key, position=position_B[:, None], draw=draw_B2)
    anchor_B2[shape_B2[:, 0] == 0] = 0
    return anchor_B2.astype(np.int32), shape_B2


def _draw_channels(
    config: AugmentConfig, key: tuple[int, int, int], position_B: np.ndarray, branch_B: np.ndarray
) -> np.ndarray:
    """V0: identity. V1: one channel in place of all three. I: the same in cases 0-2, otherwise gray or identity."""
    channel_BCC = np.tile(np.eye(3, dtype=np.float32), (len(position_B), 1, 1))
    copies = np.zeros((3, 3, 3), dtype=np.float32)
    copies[np.arange(3), :, np.arange(3)] = 1.0  # copies[i] @ x = x_i in every channel
    exchange = branch_B == Branch.AUGMENTED
    channel_BCC[exchange] = copies[integers(3, Stream.CHANNEL, *key, position=position_B[exchange])]
    adapt = np.flatnonzero(branch_B == Branch.INFRARED)
    case = integers(4, Stream.CHANNEL, *key, position=position_B[adapt])
    channel_BCC[adapt[case < 3]] = copies[case[case < 3]]
    gray = (case == 3) & (uniform(Stream.CHANNEL, *key, position_B[adapt], 1) < config.gray)
    channel_BCC[adapt[gray]] = np.tile(GRAY, (3, 1))
    return channel_BCC


def resize(image_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, half-pixel centres, no antialiasing, edges repeated. From uint8 to uint8, rounded to nearest."""
    rows, row_share = _sources(image_HWC.shape[0], height)
    columns, column_share = _sources(image_HWC.shape[1], width)
    pixels = image_HWC.astype(np.float64)
    lines = pixels[rows[0]] * (1 - row_share)[:, None, None] + pixels[rows[1]] * row_share[:, None, None]
    mixed = lines[:, columns[0]] * (1 - column_share)[:, None] + lines[:, columns[1]] * column_share[:, None]
    return np.clip(np.round(mixed), 0, 255).astype(np.uint8)


def _sources(size: int, target: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    centre = (np.arange(target) + 0.5) * size / target - 0.5
    first = np.floor(centre).astype(np.int64)
    return (np.clip(first, 0, size - 1), np.clip(first + 1, 0, size - 1)), centre - first


def pad_crop(image_HWC: np.ndarray, pad: int, corner: tuple[int, int]) -> np.ndarray:
    """Pad with 0 on every side, then crop the original size at `corner` (y, x), in unpadded coordinates."""
    height, width = image_HWC.shape[:2]
    padded = np.pad(image_HWC, ((pad, pad), (pad, pad), (0, 0)))
    top, left = corner[0] + pad, corner[1] + pad
    return padded[top : top + height, left : left + width]


def normalise(image_HWC: np.ndarray) -> np.ndarray:
    """Raw 0..255 to ImageNet-normalised values."""
    return (image_HWC / 255 - MEAN) / STD


def erase(image_HWC: np.ndarray, anchor: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Channel erasing: fill the box with one value per channel."""
    erased = image_HWC.copy()
    erased[anchor[0] : anchor[0] + shape[0], anchor[1] : anchor[1] + shape[1]] = ERASE_FILL
    return erased


def reference(image_HWC: np.ndarray, config: AugmentConfig, parameters: Parameters, place: int) -> np.ndarray:
    """A decoded RGB image (uint8, any size) augmented by row `place` of the parameters: float32 [C, H, W]."""
    matrix_CC = parameters.channel_BCC[place].astype(np.float64)
    image = resize(image_HWC, config.height, config.width)
    image = pad_crop(image, config.pad, tuple(parameters.crop_B2[place]))
    image = image[:, ::-1] if parameters.mirror_B[place] else image
    if config.channel_augment_space == "raw":
        image = image @ matrix_CC.T
    image = erase(normalise(image), parameters.erase_anchor_B2[place], parameters.erase_shape_B2[place])
    if config.channel_augment_space == "normalized":
        image = image @ matrix_CC.T
    return np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)
