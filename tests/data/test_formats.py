"""What DALI is given of every format: its pixels are those of `decode`, in the reader and in the whole pipeline."""

import numpy as np
import pytest
from nvidia.dali import Pipeline, fn, types
from PIL import Image

from shards.sources import manifest
from tacaf.data.evaluation_pipeline import EvaluationPipeline
from tacaf.data.index import ShardIndex
from tacaf.data.reader import BadSampleError, ShardReader
from tacaf.images import MEAN, PER_IMAGE, STD, GreyScale, decode, for_dali
from tacaf.vocabulary import Modality
from tests.shards.raw import image_bytes
from tests.thermal import HEIGHT, HIGH, LOW, WIDTH, counts, encoded, write_manifest

SCALE = GreyScale(kind="given", low=LOW, high=HIGH)
RGB = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
TURNED = Image.Exif()
TURNED[0x112] = 6
CASES = {
    "PNG": encoded(RGB, "PNG"),
    "grey PNG": encoded(RGB[..., 0], "PNG"),
    "BMP": encoded(RGB, "BMP"),
    "TIFF": encoded(RGB, "TIFF"),
    "grey TIFF": encoded(RGB[..., 0], "TIFF"),
    "LZW TIFF": encoded(RGB, "TIFF", compression="tiff_lzw"),
    "turned TIFF": encoded(RGB, "TIFF", exif=TURNED),
    "palette TIFF": encoded(Image.fromarray(RGB).quantize(20), "TIFF"),
    "CMYK TIFF": encoded(Image.fromarray(RGB).convert("CMYK"), "TIFF"),
    "TIFF with alpha": encoded(np.dstack([RGB, RGB[..., :1]]), "TIFF"),
    "WebP": encoded(RGB, "WEBP"),
    "lossless WebP": encoded(RGB, "WEBP", lossless=True),
    "WebP with alpha": encoded(np.dstack([RGB, RGB[..., :1]]), "WEBP"),
    "turned WebP": encoded(RGB, "WEBP", exif=TURNED),
    "PNG of 16 bits": encoded(counts(0), "PNG"),
    "turned PNG of 16 bits": encoded(counts(0), "PNG", exif=TURNED),
    "TIFF of 16 bits": encoded(counts(0), "TIFF"),
    "TIFF of 32 bits": encoded(counts(0).astype(np.int32), "TIFF"),
    "TIFF of floats": encoded(counts(0).astype(np.float32), "TIFF"),
}


def of_dali(data: bytes) -> np.ndarray:
    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipeline:
        file = fn.external_source(source=lambda: [np.frombuffer(data, np.uint8)])
        pipeline.set_outputs(fn.decoders.image(file, device="cpu", output_type=types.RGB))
    pipeline.build()
    return np.array(pipeline.run()[0].at(0))


@pytest.mark.parametrize("scale", [SCALE, PER_IMAGE, None], ids=["given", "per image", "none"])
@pytest.mark.parametrize("case", CASES)
def test_dali_decodes_what_it_is_given_to_the_same_pixels(case, scale):
    np.testing.assert_array_equal(of_dali(for_dali(CASES[case], scale)), decode(CASES[case], scale))


@pytest.mark.parametrize("case", ["PNG", "grey PNG", "BMP"])
def test_what_dali_decodes_alike_is_left_as_it_is(case):
    assert for_dali(CASES[case], SCALE) is CASES[case]
    assert for_dali(CASES["PNG of 16 bits"], None) is CASES["PNG of 16 bits"]  # a set packed before there were scales


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Every case as an infrared image of a person of its own, with a measured range."""
    raw = tmp_path_factory.mktemp("raw")
    suffix = {"P": ".png", "B": ".bmp", "T": ".tif", "W": ".webp"}
    kinds = {name: next(kind for kind in ("PNG", "BMP", "TIFF", "WebP") if kind in name) for name in CASES}
    infrared = {f"{n:02d}{suffix[kinds[name][0]]}": data for n, (name, data) in enumerate(CASES.items())}
    return manifest.pack(raw, raw.with_name(raw.name + "-set"), write_manifest(raw, infrared)).folder


def test_the_pipeline_gives_the_pixels_of_every_format(packed):
    index = ShardIndex.open(packed)
    reader, scale = ShardReader(index), index.scales[Modality.INFRARED]
    rows = np.flatnonzero(np.asarray(index.columns["modality"]) == Modality.INFRARED.code)
    size = {decode(data).shape[:2] for data in CASES.values()}
    assert size == {(HEIGHT, WIDTH), (WIDTH, HEIGHT)}
    found = 0
    for images_1CHW, (row,) in EvaluationPipeline(index, rows, HEIGHT, WIDTH, batch_size=1):
        expected_HWC = decode(list(CASES.values())[int(index.columns["pid"][row]) - 1], scale)
        np.testing.assert_array_equal(reader.pixels(int(row)), expected_HWC)
        if expected_HWC.shape[:2] == (HEIGHT, WIDTH):  # not resized
            seen_HWC = 255 * (images_1CHW[0].permute(1, 2, 0).numpy() * STD + MEAN)
            np.testing.assert_allclose(seen_HWC, expected_HWC, atol=1e-3)
            found += 1
    assert found == sum(decode(data).shape[:2] == (HEIGHT, WIDTH) for data in CASES.values()) >= 15


def test_a_sets_own_bytes_are_given_where_they_can_be(sysu_shards):
    reader = ShardReader(ShardIndex.open(sysu_shards))
    for row in range(3):
        assert reader.read(row).tobytes() == reader.original(row)
        assert reader.read(row).tobytes() == reader.original(row), "and when the header is known"


def test_a_wide_image_cut_inside_is_named(tmp_path):
    whole = encoded(counts(0), "TIFF")
    listed = write_manifest(tmp_path / "raw", {"a.tif": whole, "b.tif": whole})
    index = ShardIndex.open(manifest.pack(tmp_path / "raw", tmp_path / "set", listed).folder)
    row = int(np.flatnonzero(np.asarray(index.columns["modality"]) == Modality.INFRARED.code)[0])
    index.columns["size"] = np.array(index.columns["size"])
    index.columns["size"][row] -= 500
    for ask in (ShardReader(index).read, ShardReader(index).pixels, ShardReader(index).check):
        with pytest.raises(BadSampleError, match=index.key(row)):
            ask(row)


def test_a_picture_of_another_kind_than_its_name_is_decoded_by_its_content(tmp_path):
    listed = write_manifest(tmp_path / "raw", {"a.png": image_bytes(1, "TIFF"), "b.jpg": image_bytes(2, "WEBP")})
    index = ShardIndex.open(manifest.pack(tmp_path / "raw", tmp_path / "set", listed).folder)
    for images_BCHW, _ in EvaluationPipeline(index, np.arange(len(index)), 40, 24, batch_size=2):
        assert images_BCHW.std() > 0.5
