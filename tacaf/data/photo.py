"""Decoding a single image safely and preparing it as the evaluation pipeline prepares those of a shard set.

For search, export and pages, where images come one at a time and may be malicious. DALI prepares the images of shard
sets; only the decoder's rounding differs (a test bounds it). Source: ours.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from tacaf import images
from tacaf.files import path_of, read_bytes, reason_of, shown
from tacaf.images import LITTLE_USED, MEAN, STD, SUFFIXES, WHOLE_16_BITS, GreyScale, ImageError, share_used
from tacaf.vocabulary import InputError

Source = str | Path | bytes | Image.Image | np.ndarray
_WHOLE_8_BITS = GreyScale(kind="given", low=0, high=255)


class Limits(NamedTuple):
    """Larger images are refused before they are decoded."""

    mib: float = images.MOST_BYTES / 2**20  # of a file
    megapixels: float = images.MOST_PIXELS / 1e6


USUAL = Limits()


def decode(
    source: Source, limits: Limits = USUAL, name: str = "the image", scale: GreyScale | None = None
) -> np.ndarray:
    """RGB pixels, uint8 [H, W, 3], of a path, a file's bytes, a PIL image or an array.

    Arrays are uint8 [H, W] or [H, W, 1, 3 or 4], or grey of any other type of number, [H, W] or [H, W, 1]. As in DALI
    (a test compares them), the image is rotated according to EXIF, grey becomes three equal channels, an alpha channel
    is dropped, and an animation gives its first frame. Grey of more than 8 bits is mapped by `scale`. Without one,
    whole numbers are taken to fill 16 bits, and an image that would then look flat is refused.

    Raises InputError if the source is not an image, is truncated, or exceeds the limits, which are checked before
    decoding. The error names the path, or `name` for other sources.
    """
    name = str(source) if isinstance(source, str | Path) else name
    try:
        if isinstance(source, np.ndarray):
            return _of_array(source, scale)
        if isinstance(source, Image.Image):
            return _pixels(source, limits, scale)
        if not isinstance(source, str | Path | bytes):
            raise ImageError(f"{type(source).__name__}: give a path, a file's bytes, a PIL image or an array")
        data = source if isinstance(source, bytes) else read_file(path_of(str(source)), limits)
        if len(data) > limits.mib * 2**20:
            raise ImageError(f"{len(data) / 2**20:.1f} MiB, more than {limits.mib:g}")
        with images.open_image(data) as image:
            return _pixels(image, limits, scale)
    except ImageError as problem:
        raise InputError(f"{shown(name)}: cannot be used as an image: {problem}") from None


def prepare(pixels_HWC: np.ndarray, height: int, width: int) -> torch.Tensor:
    """The model's input from pixels, float32 [3, height, width]: resized (bilinear, no antialiasing), normalised."""
    image_CHW = torch.tensor(np.ascontiguousarray(pixels_HWC)).permute(2, 0, 1).float()
    resized_CHW = F.interpolate(image_CHW[None], (height, width), mode="bilinear", align_corners=False)[0]
    mean_C11, std_C11 = (torch.tensor(255 * values, dtype=torch.float32).view(3, 1, 1) for values in (MEAN, STD))
    return (resized_CHW.round_() - mean_C11) / std_C11


def images_below(folder: Path) -> list[Path]:
    """Every image file below a folder, by suffix, sorted. Links that lead out of the folder are left out."""
    return [path for path, problem in _found_below(folder) if problem is None]


def left_out_below(folder: Path) -> list[str]:
    """A line for everything that `images_below` leaves out: links, other kinds of files, unreadable folders."""
    return [f"{path}: {problem}" for path, problem in _found_below(folder) if problem is not None]


def read_file(path: Path, limits: Limits = USUAL) -> bytes:
    """The bytes of an image file. Raises InputError if it is too large, unreadable or not a plain file."""
    return read_bytes(path, int(limits.mib * 2**20))


def _found_below(folder: Path) -> list[tuple[Path, str | None]]:
    """Every file below the folder, sorted, with the reason why it is not one of its images, or None."""
    if not folder.is_dir():
        raise InputError(f"{shown(folder)} is not a folder; check the path")
    home = folder.resolve()
    found: dict[Path, str | None] = {}

    def unreadable(error: OSError) -> None:
        found[Path(error.filename)] = f"a folder that cannot be read ({reason_of(error)})"

    for above, folders, files in os.walk(folder, onerror=unreadable):
        for name in folders:
            if (path := Path(above, name)).is_symlink():
                found[path] = "a link to a folder, which is not followed"
        found.update({path: _problem(path, home) for path in (Path(above, name) for name in files)})
    return sorted(found.items(), key=lambda pair: pair[0])


def _problem(path: Path, home: Path) -> str | None:
    if path.suffix.lower() not in SUFFIXES:
        return f"not an image by its name (expected {', '.join(SUFFIXES)})"
    try:
        if not path.is_file():
            return "a broken link" if path.is_symlink() else "not a plain file"
        return None if path.resolve().is_relative_to(home) else "a link that leads out of the folder"
    except (OSError, RuntimeError) as error:  # a link to itself
        return f"cannot be read ({error})"


def _pixels(image: Image.Image, limits: Limits, scale: GreyScale | None) -> np.ndarray:
    if image.width * image.height > limits.megapixels * 1e6:
        raise ImageError(f"{image.width} x {image.height} pixels, more than {limits.megapixels:.3g} million")
    if images.is_wide(image):
        return _of_values(images.wide_values(image), scale)
    deep = images.has_deep_colour(image)  # before Pillow loads the pixels and forgets their depth
    pixels_HWC = images.pixels_of(image)
    if deep and share_used(pixels_HWC, _WHOLE_8_BITS) < LITTLE_USED:
        raise ImageError("16 bits in colour or with an alpha channel, using little of their range; save it as grey")
    return pixels_HWC


def _of_array(array: np.ndarray, scale: GreyScale | None) -> np.ndarray:
    grey = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)
    narrow = array.dtype == np.uint8 and (grey or (array.ndim == 3 and array.shape[2] in (3, 4)))
    if array.size == 0 or not (narrow or (grey and array.dtype.kind in "uif")):
        raise ImageError(
            f"an array of {array.dtype} {list(array.shape)}: give uint8 [H, W, 3], or grey [H, W] of numbers"
        )
    if not narrow:
        return _of_values(array.reshape(array.shape[:2]), scale)
    return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2) if grey else array[..., :3]


def _of_values(values_HW: np.ndarray, scale: GreyScale | None) -> np.ndarray:
    """RGB pixels of grey values of more than 8 bits. Refused if their range is unknown and a guess would look flat."""
    try:
        if scale is None and share_used(values_HW, WHOLE_16_BITS) < LITTLE_USED:
            raise ImageError(f"grey values that use less than {LITTLE_USED:.0%} of 16 bits, and their range is unknown")
        return np.repeat(images.scaled(values_HW, scale)[..., None], 3, axis=2)
    except ImageError as problem:
        hint = "" if scale is not None else "; set thermal_range (--thermal-range LOW HIGH or per-image)"
        raise ImageError(f"{problem}{hint}") from None
