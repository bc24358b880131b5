"""Small image files that would keep a decoder busy for hours or fill the memory are refused before they are decoded."""

import io
import struct

import pytest
from PIL import Image

from tacaf.images import MOST_SCANS, MOST_SIDE, ImageError, decode, open_image


def progressive(side: int, more_scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = io.BytesIO()
    Image.new("L", (side, side)).save(data, "JPEG", progressive=True)
    whole = data.getvalue()
    return whole[:-2] + whole[whole.rindex(b"\xff\xda") : -2] * more_scans + whole[-2:]


def run_length_bmp(width: int) -> bytes:
    """A BMP of one row, in which four bytes mean 255 empty rows."""
    body = b"\0\2\0\xff" + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, width, 1, 1, 8, 1, len(body), 0, 0, 256, 0)
    start = 14 + len(header) + 1024
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + bytes(1024) + body


def test_a_jpeg_of_many_scans():
    assert decode(progressive(64, 10)).shape == (64, 64, 3)
    with pytest.raises(ImageError, match=f"{MOST_SCANS}"):
        open_image(progressive(4096, MOST_SCANS))
    open_image(progressive(16, MOST_SCANS)).close()  # too small to keep anybody waiting


def test_a_bmp_that_grows():
    assert decode(run_length_bmp(200)).shape == (1, 200, 3)
    with pytest.raises(ImageError, match=f"{MOST_SIDE:,}"):
        open_image(run_length_bmp(2**25))
