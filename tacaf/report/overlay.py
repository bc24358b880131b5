"""Drawing a map's values over its image: heat maps, person masks, and lines between corresponding points.

H x W pixels of an image, h x w positions of a map, row by row; L = h*w.
"""

import colorsys
import io
from typing import NamedTuple

import numpy as np
from PIL import Image

HEAT = (255, 96, 0)  # where a point is matched to
MASK = (0, 200, 130)  # where the person is
_STRENGTH = 0.75  # of the colour where the value is 1, so that the image is still visible


class Line(NamedTuple):
    """A line from a point on one image to a point on another, as fractions of width and height."""

    x: float
    y: float
    to_x: float
    to_y: float
    share: float  # of the matching at its end, 0..1
    colour: str  # by height on the query, so that a distorted match is visible


def overlay(image_HWC: np.ndarray, values_L: np.ndarray, height: int, colour: tuple[int, int, int]) -> np.ndarray:
    """The image, uint8 H x W x 3, coloured where values, in [0, 1] on a map of `height` rows, are high.

    The map is enlarged smoothly, although it has only one value per position.
    """
    map_hw = np.clip(values_L, 0, 1).reshape(height, -1).astype(np.float32)
    size = (image_HWC.shape[1], image_HWC.shape[0])
    alpha_HW = np.asarray(Image.fromarray(map_hw).resize(size, Image.Resampling.BILINEAR))[..., None] * _STRENGTH
    mixed = (1 - alpha_HW) * image_HWC + alpha_HW * np.array(colour)
    return mixed.round().astype(np.uint8)


def match_lines(matching_LL: np.ndarray, comask_L: np.ndarray, height: int, count: int = 6) -> list[Line]:
    """Lines from `count` points of the query: in as many rows of its map, the position likeliest to be on the person.

    matching_LL: rows sum to 1 over the positions of the other image; comask_L: `Correspondence.comask_NL`. Each line
    ends at the position with the largest share.
    """
    width = len(comask_L) // height
    rows = np.unique(np.linspace(0, height - 1, min(count, height)).round().astype(int)).tolist()
    lines = []
    for row in rows:
        column = int(comask_L.reshape(height, width)[row].argmax())
        share_L = matching_LL[row * width + column]
        to_row, to_column = divmod(int(share_L.argmax()), width)
        hue = 0.8 * row / max(1, height - 1)
        red, green, blue = (round(255 * value) for value in colorsys.hls_to_rgb(hue, 0.5, 0.9))
        lines.append(
            Line(
                *((column + 0.5) / width, (row + 0.5) / height),
                *((to_column + 0.5) / width, (to_row + 0.5) / height),
                float(share_L.max()),
                f"#{red:02x}{green:02x}{blue:02x}",
            )
        )
    return lines


def webp(image_HWC: np.ndarray) -> bytes:
    """The image as a small WebP file."""
    data = io.BytesIO()
    Image.fromarray(image_HWC).save(data, "WEBP", quality=80)
    return data.getvalue()
