"""Image files: the formats, the pixel limit, safe decoding to RGB, and the scale of grey values wider than 8 bits.

Packing, verifying, training, search and the web page share this list of formats and this limit. Every decoder gets the
list, so that no file makes Pillow start another program. Source: ours.
"""

import io
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps
from pydantic import Field, ValidationError, model_validator

from tacaf.documents import Document
from tacaf.vocabulary import InputError

# ImageNet's mean and standard deviation as fractions of full scale; every image is normalised with them.
MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float64)
STD = np.array([0.229, 0.224, 0.225], dtype=np.float64)

FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
MOST_PIXELS = 2**26  # more than any detector's crop; keeps a malicious header from filling the memory
MOST_BYTES = 2**28
MOST_SIDE = 2**16 - 1  # JPEG's own limit; in wider BMPs, a few bytes can describe gigabytes
MOST_SCANS = 100  # of a progressive JPEG, which usually has about ten; each costs as much as the whole image
# Pillow's modes for grey images of more than 8 bits: unsigned 16 bits, 32 bits, floating point.
WIDE_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")

# How files begin, because Pillow does not tell the format of a file whose header it cannot read. A BMP begins with only
# two letters, as other files may.
_BEGINNINGS = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "TIFF": re.compile(rb"II\*\0|MM\0\*"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
}
_KINDS_READ = {"TIFF": "8 or 16 bits a value, or 32 bits of floating point"}
_USUAL_KIND = "8 bits a channel"
_ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_SCANNED_PIXELS = 1e8
_SCAN = re.compile(b"\xff\xda")  # in a JPEG's compressed data, ff is always followed by 0
_DECODED_BY_DALI = ("JPEG", "PNG", "BMP")
_SAMPLED = 128  # values per image from which the range of a set is measured
_GOLDEN = (5**0.5 - 1) / 2  # fractions of its multiples fill 0 to 1 evenly and are in step with no image's width
_BLOCK = 2**20  # values that are examined or mapped at once
LITTLE_USED = 0.1  # an image that uses a smaller share of the range looks flat
_PILLOWS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # a filter of its warnings, in Python's representation
_ROBUST = (0.1, 99.9)  # percentiles that bound a measured range, so that a dead pixel has no influence


# Far above any sensor's values, and the difference of two of them is still finite.
Grey = Annotated[float, Field(ge=-1e300, le=1e300)]
ThermalRange = tuple[float, float] | Literal["per-image"] | None  # what a user may give; None for the known range


class ImageError(ValueError):
    """Why a file is not an image that can be used, as the end of a sentence."""


class GreyScale(Document):
    """How grey values of more than 8 bits become 0 to 255: black up to `low`, white from `high`, linear between.

    measured: low and high are robust bounds of the whole set; given: the user's bounds; per_image: each image's own.
    """

    kind: Literal["measured", "given", "per_image"]
    low: Grey | None = None
    high: Grey | None = None

    @model_validator(mode="after")
    def _ordered(self) -> "GreyScale":
        if self.kind == "per_image":
            if (self.low, self.high) != (None, None):
                raise ValueError(f"expected no low and high with per_image, got {self.low} and {self.high}")
        elif self.low is None or self.high is None or not self.low < self.high:
            raise ValueError(f"expected low < high, got {self.low} and {self.high}")
        return self

    def describe(self) -> str:
        """The scale as text for a table or a message."""
        return "each image's own range" if self.kind == "per_image" else f"{self.low:g} to {self.high:g} ({self.kind})"


PER_IMAGE = GreyScale(kind="per_image")
WHOLE_16_BITS = GreyScale(kind="given", low=0, high=65535)  # how DALI converts 16 bits


def given_scale(value: Any, name: str = "thermal_range") -> GreyScale | None:
    """The scale that a user gives: `per-image`, two numbers (or text for them), or None for none.

    Raises InputError for anything else; `name` is the name of the option.
    """
    if value is None:
        return None
    words = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]
    if words == ["per-image"]:
        return PER_IMAGE
    try:
        low, high = (float(word) for word in words)
        return GreyScale(kind="given", low=low, high=high)
    except (TypeError, ValueError, OverflowError, ValidationError):
        got = " ".join(map(str, words))[:80]
        raise InputError(f"{name}: expected two numbers, the lower one first, or per-image, got {got!r}") from None


def open_image(data: bytes) -> Image.Image:
    """The image with only its header read. Raises ImageError for another format or more than MOST_PIXELS."""
    if not data:
        raise ImageError("an empty file")
    if len(data) > MOST_BYTES:
        raise ImageError(f"{len(data):,} bytes, more than {MOST_BYTES:,}")
    _ignore_warnings()  # Pillow warns about large images; we raise an error
    try:
        image = Image.open(io.BytesIO(data), formats=tuple(FORMATS))
    except Image.UnidentifiedImageError:
        raise ImageError(_unidentified(data)) from None
    except Exception as error:  # Pillow raises many kinds on damaged data
        raise ImageError(f"unreadable ({error})") from None
    width, height = image.size
    if width * height > MOST_PIXELS:
        image.close()
        raise ImageError(f"{width} x {height} pixels, more than {MOST_PIXELS:,}")
    problem = _takes_too_long(image, data)
    if problem is not None:
        image.close()
        raise ImageError(problem)
    return image


def _unidentified(data: bytes) -> str:
    """Why Pillow does not open this file, judged by its first bytes."""
    name = next((name for name, beginning in _BEGINNINGS.items() if beginning.match(data)), None)
    if name is None:
        return f"not an image in a known format ({', '.join(FORMATS)})"
    return f"a {name} that is damaged or of a kind that is not read; save it with {_KINDS_READ.get(name, _USUAL_KIND)}"


def _takes_too_long(image: Image.Image, data: bytes) -> str | None:
    """Why a small file would keep a decoder busy for hours or fill the memory, or None."""
    if max(image.size) > MOST_SIDE:
        return f"{image.width} x {image.height} pixels, a side of more than {MOST_SIDE:,}"
    # A scan can take only 20 bytes and cover the whole image. Files that are decoded within a second are not searched.
    if image.format == "JPEG" and image.width * image.height * len(data) / 20 > _SCANNED_PIXELS:
        scans = len(_SCAN.findall(data))
        if scans > MOST_SCANS:
            return f"a JPEG of {scans} scans, more than {MOST_SCANS}"
    return None


def decode(data: bytes, scale: GreyScale | None = None) -> np.ndarray:
    """RGB pixels, uint8 [H, W, 3]; see `pixels_of`. Raises ImageError if `data` is not a whole image within limits."""
    with open_image(data) as image:
        return pixels_of(image, scale)


def pixels_of(image: Image.Image, scale: GreyScale | None = None) -> np.ndarray:
    """RGB pixels, uint8 [H, W, 3], of an opened image.

    As in DALI, the image is rotated according to EXIF, grey becomes three equal channels, an alpha channel is dropped,
    and an animation gives its first frame. Grey values of more than 8 bits are mapped by `scale`; without one, whole
    numbers are taken to fill 16 bits (as in DALI), and floating point is refused.
    """
    if image.width * image.height > MOST_PIXELS:
        raise ImageError(f"{image.width} x {image.height} pixels, more than {MOST_PIXELS:,}")
    if image.mode not in WIDE_MODES:
        return np.asarray(_loaded(image).convert("RGB"))
    return np.repeat(scaled(wide_values(image), scale)[..., None], 3, axis=2)


def is_wide(image: Image.Image) -> bool:
    """Whether an opened image holds grey values of more than 8 bits."""
    return image.mode in WIDE_MODES


def has_deep_colour(image: Image.Image) -> bool:
    """Whether an image that is opened but not loaded has several channels of 16 bits. Pillow keeps their upper 8."""
    return not is_wide(image) and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def wide_values(image: Image.Image) -> np.ndarray:
    """The grey values of a wide image, numbers [H, W], rotated according to EXIF."""
    return np.asarray(_loaded(image))


def scaled(values: np.ndarray, scale: GreyScale | None) -> np.ndarray:
    """Grey values, numbers of any type, as uint8 of the same shape; NaN becomes black."""
    if scale is None:
        if values.size and (not np.isfinite(values).all() or values.min() < 0 or (values % 1).any()):
            raise ImageError("grey values that are not whole numbers from 0, and their range is unknown")
        if values.size and values.max() > 65535:
            raise ImageError("grey values of more than 16 bits, and their range is unknown")
        scale = WHOLE_16_BITS
    if values.size and not np.isfinite(values).any():
        raise ImageError("no finite grey value")
    low, high = robust_range(values) if scale.low is None or scale.high is None else (scale.low, scale.high)
    flat = values.ravel()
    levels = np.empty(flat.shape, np.uint8)
    for start in range(0, flat.size, _BLOCK):  # in blocks, so that a large image does not take a multiple of its memory
        with np.errstate(invalid="ignore"):  # NumPy warns about converting some kinds of NaN
            part = flat[start : start + _BLOCK].astype(np.float64)
        part = np.nan_to_num(part, nan=low, posinf=high, neginf=low)
        levels[start : start + _BLOCK] = np.rint(np.clip((part - low) / (high - low), 0, 1) * 255)
    return levels.reshape(values.shape)


def robust_range(values: np.ndarray) -> tuple[float, float]:
    """Bounds of the finite values without a thousandth on either side; low < high always."""
    finite = _finite(values)
    if not finite.size:
        raise ImageError("no finite grey value")
    low, high = (float(bound) for bound in np.percentile(finite, _ROBUST))
    return (low, high) if low < high else (low, float(np.nextafter(low + 1, np.inf)))


def sample_of(values: np.ndarray) -> np.ndarray:
    """Some finite values from all over an image, from which `measured` computes the range of a set."""
    flat = values[np.isfinite(values)]
    return flat[(np.arange(min(flat.size, _SAMPLED)) * _GOLDEN % 1 * flat.size).astype(np.int64)]


def measured(samples: Iterable[Sequence[float] | np.ndarray]) -> GreyScale:
    """The scale of a set from the samples of its images."""
    low, high = robust_range(np.concatenate([np.asarray(sample) for sample in samples]))
    return GreyScale(kind="measured", low=low, high=high)


def share_used(values: np.ndarray, scale: GreyScale) -> float:
    """The share of the scale's range that these values use, ignoring a hundredth on either side; 1 for per_image."""
    finite = _finite(values)
    if scale.low is None or scale.high is None or not finite.size:
        return 1.0
    low, high = (float(np.clip(bound, scale.low, scale.high)) for bound in np.percentile(finite, (1, 99)))
    return (high - low) / (scale.high - scale.low)


def _finite(values: np.ndarray) -> np.ndarray:
    """The finite values as float64; if there are very many, a regular sample of them."""
    finite = values[np.isfinite(values)]
    return finite[:: finite.size // _BLOCK + 1].astype(np.float64)


def far_apart(one: GreyScale, other: GreyScale) -> bool:
    """Whether the same values look clearly different through two scales: their ranges share less than half."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return one.kind != other.kind
    shared = min(one.high, other.high) - max(one.low, other.low)
    return shared < 0.5 * (max(one.high, other.high) - min(one.low, other.low))


def for_dali(data: bytes, scale: GreyScale | None, decoded: bool = False) -> bytes:
    """The file itself if DALI decodes it as `decode` does; otherwise its pixels as a BMP, which is quick to write.

    `decoded`: always its pixels, for a file that DALI was found to refuse. Raises ImageError like `decode`.
    """
    with open_image(data) as image:
        if not decoded and image.format in _DECODED_BY_DALI and not (is_wide(image) and scale is not None):
            return data
        pixels = pixels_of(image, scale)
        grey = image.mode == "L" or is_wide(image)
    encoded = io.BytesIO()
    Image.fromarray(pixels[..., 0] if grey else pixels).save(encoded, "BMP")
    return encoded.getvalue()


class Looked(NamedTuple):
    """What packing must know about an image file besides its bytes."""

    sample: np.ndarray | None  # of its grey values, if these have more than 8 bits
    narrowed: bool  # its colours, or its grey with an alpha channel, have 16 bits, of which only the upper 8 are used


def look(data: bytes) -> Looked:
    """Check an image file by its header and its last bytes. Raises ImageError if it is not a whole image.

    Decodes only grey images of more than 8 bits, formats without an end marker, and doubtful files: a JPEG or PNG
    without its end marker may still be whole (a camera may have appended bytes).
    """
    with open_image(data) as image:
        if is_wide(image):
            sample = sample_of(wide_values(image))
            if not sample.size:
                raise ImageError("no finite grey value")
            return Looked(sample, False)
        narrowed = has_deep_colour(image)
        ending = _ENDINGS.get(image.format or "")
        if not (ending and data.endswith(ending)):
            _loaded(image)
    return Looked(None, narrowed)


def decode_problem(data: bytes, scale: GreyScale | None = None) -> str | None:
    """Why an image file cannot be decoded completely, or None. `scale` as for `decode`."""
    try:
        with open_image(data) as image:
            if is_wide(image):
                scaled(wide_values(image), scale)
            else:
                _loaded(image)
    except ImageError as error:
        return str(error)
    return None


def _loaded(image: Image.Image) -> Image.Image:
    _ignore_warnings()  # Pillow warns about damaged EXIF data, without which the image is still whole
    try:
        image.load()
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image  # the next line would copy it
        return ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow raises many kinds on damaged data
        raise ImageError(f"unreadable or truncated ({error})") from None


def _ignore_warnings() -> None:
    """Ignore Pillow's warnings from now on.

    `warnings.catch_warnings` would change the filters of all threads: if two threads decode at once, one may restore
    what the other has set, and every warning of the process could be lost permanently.
    """
    if warnings.filters[:1] != [_PILLOWS]:
        warnings.filterwarnings("ignore", module=_PILLOWS[3].pattern)
