"""What counts as an image file, and whether its bytes are a whole one: cheaply while packing, fully while verifying."""

import io

from PIL import Image

# Read by DALI's decoders and by Pillow alike.
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
# How a whole file of the format ends. A file without it may still be whole (bytes appended by a camera): then decode.
_ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


def header_problem(data: bytes) -> str | None:
    """What is wrong with an image file as far as its header and its end tell, or None. Decodes only if in doubt."""
    if not data:
        return "empty file"
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = image.format or ""
    except Exception as error:  # Pillow raises many kinds on damaged data
        return _reason(error)
    if kind in _ENDINGS and data.endswith(_ENDINGS[kind]):
        return None
    return decode_problem(data)


def decode_problem(data: bytes) -> str | None:
    """What keeps an image file from decoding completely, or None."""
    if not data:
        return "empty file"
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except Exception as error:  # Pillow raises many kinds on damaged data
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image in a known format"
    return f"unreadable or truncated ({error})"
