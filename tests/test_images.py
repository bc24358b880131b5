"""Image files: one list of formats, one limit, and the scale that grey values of more than 8 bits go through."""

import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from tacaf import images
from tacaf.data import photo
from tacaf.documents import parse
from tacaf.images import (
    PER_IMAGE,
    GreyScale,
    ImageError,
    decode,
    far_apart,
    given_scale,
    look,
    measured,
    open_image,
    sample_of,
    scaled,
    share_used,
)
from tacaf.vocabulary import InputError
from tests.thermal import HIGH, LOW, counts, encoded

SCALE = GreyScale(kind="given", low=LOW, high=HIGH)
KINDS = {
    "PNG of 16 bits": lambda values: encoded(values, "PNG"),
    "TIFF of 16 bits": lambda values: encoded(values, "TIFF"),
    "compressed TIFF": lambda values: encoded(values, "TIFF", compression="tiff_lzw"),
    "TIFF of 16 bits, big-endian": lambda values: big_endian(values),
    "TIFF of 32 bits": lambda values: encoded(values.astype(np.int32), "TIFF"),
    "TIFF of floats": lambda values: encoded(values.astype(np.float32), "TIFF"),
}


def big_endian(values: np.ndarray) -> bytes:
    """A TIFF by hand: Pillow writes little-endian ones."""
    height, width = values.shape
    entries = {256: width, 257: height, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: values.nbytes}
    pixels = values.astype(">u2").tobytes()
    table = b"".join(
        tag.to_bytes(2, "big") + b"\0\4" + (1).to_bytes(4, "big") + value.to_bytes(4, "big")
        for tag, value in entries.items()
    )
    return b"MM\0*" + (8 + len(pixels)).to_bytes(4, "big") + pixels + len(entries).to_bytes(2, "big") + table + bytes(4)


@pytest.mark.parametrize("values", [np.ones((8, 4)), np.ones((8, 4), np.float16)], ids=["64 bits", "16 bits"])
def test_a_tiff_that_pillow_does_not_know_is_called_one(values):
    """float64 is NumPy's usual type. Users told "not a known format" would look for the fault in the wrong place."""
    sound = encoded(values.astype(np.float32), "TIFF")
    bits = (258).to_bytes(2, "little") + b"\3\0" + (1).to_bytes(4, "little")
    assert sound.count(bits + b"\x20\0") == 1
    other = sound.replace(bits + b"\x20\0", bits + bytes([8 * values.itemsize, 0]))
    assert decode(sound, PER_IMAGE).shape == (8, 4, 3)
    with pytest.raises(ImageError, match=r"TIFF.*32 bits"):
        open_image(other)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("JPEG", b"\xff\xd8\xff\xe0" + bytes(200)),
        ("PNG", b"\x89PNG\r\n\x1a\n" + bytes(200)),
        ("TIFF", b"MM\0*" + bytes(200)),
        ("WEBP", b"RIFF\xc0\0\0\0WEBP" + bytes(200)),
    ],
)
def test_a_damaged_header_is_no_unknown_format(name, data):
    with pytest.raises(ImageError, match=rf"{name}.*damaged"):
        open_image(data)


def test_a_file_of_another_kind_is_not_taken_for_a_damaged_image():
    for data in (b"RIFF\xc0\0\0\0WAVE" + bytes(200), b"II, the second"):
        with pytest.raises(ImageError, match="known format"):
            open_image(data)


def test_16_bits_beside_an_alpha_channel_are_refused_where_they_would_look_flat():
    """A PNG of grey from 7000 to 8000 and alpha, by hand: Pillow writes none."""
    values = np.linspace(7000, 8000, 32).astype(np.uint16).reshape(8, 4)
    lines = b"".join(b"\0" + np.stack([line, np.full_like(line, 65535)], 1).astype(">u2").tobytes() for line in values)
    header = struct.pack(">IIBBBBB", 4, 8, 16, 4, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")
    chunks = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in parts]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    assert look(data).narrowed
    with pytest.raises(InputError, match="16 bits"):
        photo.decode(data)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_wide_grey_is_the_same_picture(kind):
    values = counts(0)
    data = KINDS[kind](values)
    expected_HW = np.rint((values - LOW) / (HIGH - LOW) * 255).astype(np.uint8)
    np.testing.assert_array_equal(decode(data, SCALE), np.repeat(expected_HW[..., None], 3, axis=2))
    np.testing.assert_array_equal(look(data).sample, sample_of(values))


def test_14_bits_in_16_and_signed_counts_have_scales_of_their_own():
    values = counts(1, 0, 2**14 - 1)
    assert decode(encoded(values, "PNG"), measured([values.ravel()])).std() > 40
    celsius = (counts(2).astype(np.float32) - 7500) / 10
    seen = decode(encoded(celsius, "TIFF"), measured([celsius.ravel()]))
    assert seen.min() == 0
    assert seen.max() == 255


def test_a_wide_image_is_turned_as_exif_says():
    exif = Image.Exif()
    exif[0x112] = 6
    values = counts(3)
    turned = decode(encoded(values, "TIFF", exif=exif), SCALE)
    np.testing.assert_array_equal(turned, np.rot90(decode(encoded(values, "TIFF"), SCALE), k=-1))


def test_what_is_no_number_is_black_and_infinities_are_the_bounds():
    values = np.array([[np.nan, np.inf, -np.inf, LOW, HIGH, LOW - 1, HIGH + 1]])
    assert scaled(values, SCALE).tolist() == [[0, 255, 0, 0, 255, 0, 255]]


def test_a_signalling_nan_is_no_warning():
    values = np.array([[0x7F800001, 0x45DAC000, 0x45FA0000]], dtype=np.uint32).view(np.float32)
    assert scaled(values, SCALE).tolist() == [[0, 0, 250]]


def test_damaged_exif_data_are_no_warning_and_keep_no_image_out():
    image = Image.fromarray(np.full((20, 10, 3), 77, np.uint8))
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encoded(image, kind, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
        assert abs(int(decode(data).mean()) - 77) <= 1
        assert look(data).sample is None


@pytest.mark.parametrize("scale", [None, SCALE, PER_IMAGE])
def test_an_image_without_a_finite_value_is_none(scale):
    empty = np.full((4, 4), np.nan, dtype=np.float32)
    with pytest.raises(ImageError):
        scaled(empty, scale)
    with pytest.raises(ImageError):
        look(encoded(empty, "TIFF"))


def test_without_a_scale_16_bits_are_as_dali_takes_them_and_the_rest_is_refused():
    values = counts(4, 0, 65535)
    np.testing.assert_array_equal(scaled(values.astype(float), None), (values / 257).round())
    for wrong in (np.array([[0.5]]), np.array([[-1.0]]), np.array([[65536.0]])):
        with pytest.raises(ImageError, match="range is unknown"):
            scaled(wrong, None)


def test_constant_and_extreme_values_have_a_range():
    for value in (0.0, 7500.0, -3.4e38, 3.4e38, 2.0**31):
        values = np.full((3, 3), value)
        scale = measured([values.ravel()])
        for one in (scale, PER_IMAGE):
            assert len(np.unique(scaled(values, one))) == 1
    wide = GreyScale(kind="given", low=-1e300, high=1e300)
    assert scaled(np.array([[-1e300, 0, 1e300, np.inf]]), wide).tolist() == [[0, 128, 255, 255]]


def test_a_dead_pixel_decides_no_range():
    values = np.concatenate([counts(seed).ravel() for seed in range(20)])
    values[[3, 500]] = 0, 65535
    scale = measured([values])
    assert LOW <= scale.low < LOW + 20
    assert HIGH - 20 < scale.high <= HIGH


def test_samples_come_from_all_over_an_image():
    """Every eighth of the rows and of the columns, whatever the width: no grid falls in step with it."""
    for width in (31, 32, 64, 100, 128):
        places = np.arange(width * 2 * width)
        sample = sample_of(places.reshape(2 * width, width).astype(float)).astype(int)
        rows, columns = np.divmod(sample, width)
        assert len(np.unique(rows * 8 // (2 * width))) == 8
        assert len(np.unique(columns * 8 // width)) == 8
        grid = np.histogram2d(rows, columns, bins=(4, 4))[0]
        assert grid.min() > 0


def test_the_share_of_the_range_that_an_image_uses():
    assert share_used(counts(5).ravel(), SCALE) > 0.8
    assert share_used(counts(5, 7000, 7050).ravel(), SCALE) < 0.06
    assert share_used(counts(5, 0, 50).ravel(), SCALE) == 0
    assert share_used(counts(5).ravel(), PER_IMAGE) == 1


def test_scales_that_differ_much_are_told_apart():
    assert not far_apart(SCALE, GreyScale(kind="measured", low=LOW + 50, high=HIGH + 100))
    assert far_apart(SCALE, GreyScale(kind="measured", low=0, high=65535))
    assert far_apart(SCALE, GreyScale(kind="measured", low=20000, high=21000))
    assert far_apart(SCALE, PER_IMAGE)
    assert not far_apart(PER_IMAGE, PER_IMAGE)


@pytest.mark.parametrize(
    ("value", "scale"),
    [
        (None, None),
        ("per-image", PER_IMAGE),
        (["per-image"], PER_IMAGE),
        ((7000, 8020), SCALE),
        (["7000", "8020.0"], SCALE),
        ((-40, 120.5), GreyScale(kind="given", low=-40, high=120.5)),
    ],
)
def test_a_user_gives_two_numbers_or_a_word(value, scale):
    assert given_scale(value) == scale


@pytest.mark.parametrize(
    "value",
    [
        "per image",
        "",
        "78",
        7,
        [],
        ["7000"],
        [7000, 7000],
        [8020, 7000],
        [1, 2, 3],
        ["nan", 1],
        [0, "inf"],
        [0, 1e301],
        ["a", "b"],
        [None, 3],
        ["per-image", "7000"],
        [0, "9" * 400],
        {"low": 1},
    ],
)
def test_any_other_range_is_refused(value):
    with pytest.raises(InputError, match="--thermal-range"):
        given_scale(value, "--thermal-range")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"kind": "measured", "low": 2, "high": 1}',
        '{"kind": "per_image", "low": 1, "high": 2}',
        '{"kind": "given", "low": true, "high": 2}',
        '{"kind": "given", "low": 0, "high": Infinity}',
        '{"kind": "given", "low": 0, "high": 1e301}',
        '{"kind": "given", "low": 1}',
        '{"kind": "other"}',
        '{"kind": "per_image", "more": 1}',
    ],
)
def test_scales_that_are_read_are_checked(text):
    with pytest.raises(InputError, match="the card"):
        parse(text, GreyScale, "the card")


def test_scales_survive_json():
    for scale in (SCALE, PER_IMAGE, measured([counts(1).ravel()])):
        assert parse(scale.model_dump_json(), GreyScale, "the card") == scale


@pytest.mark.parametrize("kind", ["GIF", "ICO", "PPM", "JPEG2000", "EPS", "TGA"])
def test_other_formats_are_not_opened(kind):
    data = encoded(Image.new("RGB", (16, 16)), kind)
    for ask in (look, decode):
        with pytest.raises(ImageError, match="known format"):
            ask(data)


def test_more_bytes_or_pixels_than_allowed_are_refused_before_decoding(monkeypatch):
    data = encoded(Image.new("RGB", (40, 30)), "PNG")
    monkeypatch.setattr(images, "MOST_PIXELS", 1199)
    with pytest.raises(ImageError, match=r"40 x 30 .*1,199"):
        look(data)
    monkeypatch.setattr(images, "MOST_PIXELS", 1200)
    monkeypatch.setattr(images, "MOST_BYTES", 10)
    with pytest.raises(ImageError, match="10"):
        look(data)


def test_16_bits_in_colour_are_noticed():
    data = encoded(counts(6), "PNG")
    assert not look(data).narrowed
    assert not look(encoded(Image.new("RGB", (9, 9)), "PNG")).narrowed
    assert look(colour_16(counts(6))).narrowed


def colour_16(values: np.ndarray) -> bytes:
    """An RGB TIFF of 16 bits a channel, all three the same."""
    height, width = values.shape
    pixels = np.repeat(values[..., None], 3, axis=2).astype("<u2").tobytes()
    bits = 8 + len(pixels)
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 3, bits),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 8),
        (277, 3, 1, 3),
        (278, 4, 1, height),
        (279, 4, 1, len(pixels)),
    ]
    table = b"".join(
        tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + count.to_bytes(4, "little") + at.to_bytes(4, "little")
        for tag, kind, count, at in entries
    )
    after = b"\x10\0" * 3 + len(entries).to_bytes(2, "little") + table + bytes(4)
    return b"II*\0" + (bits + 6).to_bytes(4, "little") + pixels + after


def test_decoding_in_two_threads_loses_no_warning_of_the_process(monkeypatch):
    """The one that begins last ends last: what it found set is what the other had set."""
    inside, both_inside, ended = threading.Event(), threading.Event(), threading.Event()
    opened = Image.open

    def slow(*args, **options):
        if threading.current_thread() is first:
            inside.set()
            assert both_inside.wait(60)
        else:
            both_inside.set()
            assert ended.wait(60)
        return opened(*args, **options)

    data = encoded(np.zeros((4, 4), np.uint8), "PNG")
    monkeypatch.setattr(Image, "open", slow)
    first, second = (threading.Thread(target=open_image, args=(data,), daemon=True) for _ in range(2))
    first.start()
    assert inside.wait(60)
    second.start()
    first.join(60)
    ended.set()
    second.join(60)
    with pytest.raises(UserWarning, match="somebody's"):
        warnings.warn("somebody's", UserWarning, stacklevel=1)
