"""One image from anywhere, decoded safely and prepared as the evaluation pipeline prepares those of a shard set.

For search, export and pages, where images come one by one and from strangers. DALI prepares the shard sets' images;
what differs is the decoder's rounding (a test bounds it). Source: ours.
"""

import io
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from tacaf.data.augment import MEAN, STD
from tacaf.vocabulary import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")

Source = str | Path | bytes | Image.Image | np.ndarray


class Limits(NamedTuple):
    """What is refused before it is decoded."""

    mib: float = 64  # of a file
    megapixels: float = 50


USUAL = Limits()


def decode(source: Source, limits: Limits = USUAL, name: str = "the image") -> np.ndarray:
    """RGB pixels, uint8 [H, W, 3], of a path, a file's bytes, a PIL image or a uint8 array [H, W] or [H, W, 1, 3 or 4].

    Turned as EXIF says; grey becomes three equal channels, an alpha channel is left out, 16 bits become 8, of an
    animation the first picture counts. All as DALI does (a test). InputError for what is no image, is cut off, or
    exceeds the limits; nothing above them is decoded. `name` stands in the error; a path has its own.
    """
    if isinstance(source, np.ndarray):
        return _of_array(source)
    if isinstance(source, Image.Image):
        return _pixels(source, name, limits)
    name = name if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else read_file(Path(source), limits)
    if len(data) > limits.mib * 2**20:
        raise InputError(f"{name}: expected at most {limits.mib:g} MiB, got {len(data) / 2**20:.1f}; make it smaller")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own warning of large images; ours is an error
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{name}: expected an image ({', '.join(FORMATS)}), got {_reason(error)}; check it") from None
    with image:
        return _pixels(image, name, limits)


def prepare(pixels_HWC: np.ndarray, height: int, width: int) -> torch.Tensor:
    """Pixels to the model's input, float32 [3, height, width]: bilinear without antialiasing, rounded, normalised."""
    image_CHW = torch.tensor(np.ascontiguousarray(pixels_HWC)).permute(2, 0, 1).float()
    resized_CHW = F.interpolate(image_CHW[None], (height, width), mode="bilinear", align_corners=False)[0]
    mean_C11, std_C11 = (torch.tensor(255 * values, dtype=torch.float32).view(3, 1, 1) for values in (MEAN, STD))
    return (resized_CHW.round_() - mean_C11) / std_C11


def images_below(folder: Path) -> list[Path]:
    """Every image file below a folder by its suffix, sorted; what a link puts outside of the folder is left out."""
    return [path for path, inside in _found_below(folder) if inside]


def links_outside(folder: Path) -> list[Path]:
    """What `images_below` leaves out."""
    return [path for path, inside in _found_below(folder) if not inside]


def read_file(path: Path, limits: Limits = USUAL) -> bytes:
    """The bytes of an image file. InputError for one that is too large, unreadable or no plain file."""
    try:
        if path.exists() and not path.is_file():  # a pipe would never end
            raise InputError(f"expected an image file at {path}, got something else; check the path")
        size = path.stat().st_size
        if size > limits.mib * 2**20:
            raise InputError(f"{path}: expected at most {limits.mib:g} MiB, got {size / 2**20:.1f}; make it smaller")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"expected an image at {path}, got: {error.strerror}; check the path") from None


def _found_below(folder: Path) -> list[tuple[Path, bool]]:
    if not folder.is_dir():
        raise InputError(f"expected a folder of images, got {folder}, which is none; check the path")
    home = folder.resolve()
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return [(path, path.resolve().is_relative_to(home)) for path in found]


def _pixels(image: Image.Image, name: str, limits: Limits) -> np.ndarray:
    if image.width * image.height > limits.megapixels * 1e6:
        raise InputError(
            f"{name}: expected at most {limits.megapixels:g} megapixels, got {image.width} x {image.height}; make it"
            " smaller"
        )
    try:
        turned = ImageOps.exif_transpose(image)
        if turned.mode.startswith("I;16") or turned.mode == "I":
            wide = np.asarray(turned)
            return np.repeat((np.clip(wide, 0, 65535) / 257).round().astype(np.uint8)[..., None], 3, axis=2)
        return np.asarray(turned.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{name}: expected a whole image, got {_reason(error)}; fetch it again") from None


def _of_array(array: np.ndarray) -> np.ndarray:
    grey = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)
    if array.dtype != np.uint8 or array.size == 0 or not (grey or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise InputError(
            f"expected pixels as uint8 [H, W] or [H, W, 3], got {array.dtype} {list(array.shape)}; convert them"
        )
    return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2) if grey else array[..., :3]


def _reason(error: Exception) -> str:
    return "no image in a known format" if isinstance(error, Image.UnidentifiedImageError) else str(error)
