"""Embedder and the images it reads: equal to the evaluation pipeline, and every bad image refused in one line."""

import io
import os
import re
import struct
import zlib
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from shards.sources import manifest
from tacaf.data.evaluation_pipeline import EvaluationPipeline
from tacaf.data.index import ShardIndex
from tacaf.data.photo import Limits, decode, images_below, left_out_below
from tacaf.data.reader import ShardReader
from tacaf.search.embedder import Embedder
from tacaf.search.loaded_model import weights_sha256
from tacaf.vocabulary import Embedding, InputError, Modality
from tests.model.cases import tiny_model

LEVEL = 1 / 255 / 0.224  # one grey level after normalisation, at most


@pytest.fixture(scope="module")
def embedder(untrained_run):
    return Embedder.load(untrained_run)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def scene(width: int = 40, height: int = 90) -> Image.Image:
    """A smooth picture with a bright upper left corner, so that turning it shows."""
    draw = np.random.default_rng(0)
    small = draw.integers(0, 255, (6, 3, 3), dtype=np.uint8)
    small[:2, :2] = 255
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def bomb() -> bytes:
    """A PNG of some hundred bytes that says it is 60,000 x 60,000."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_descriptors_are_those_of_the_evaluation_pipeline(embedder, sysu_shards):
    index = ShardIndex.open(sysu_shards)
    reader = ShardReader(index)
    found = 0
    for images_BCHW, rows in EvaluationPipeline(index, np.arange(24), embedder.height, embedder.width, batch_size=8):
        for image_CHW, row in zip(images_BCHW, rows.tolist(), strict=True):
            data = reader.read(row).tobytes()
            assert (embedder.read(data, Modality.VISIBLE) - image_CHW).abs().max() < 1.01 * LEVEL
            modality = Modality.of_code(index.columns["modality"][row])
            own_1D, pipeline_1D = embedder.embed([data], modality), embedder.embed_prepared(image_CHW[None], modality)
            assert (own_1D * pipeline_1D).sum() > 1 - 1e-4
            found += 1
    assert found == 24


ODD = {
    "turned by EXIF": (lambda: encoded(scene(), "JPEG", exif=turned(6), quality=95), "jpg"),
    "turned PNG": (lambda: encoded(scene(), "PNG", exif=turned(3)), "png"),
    "grey": (lambda: encoded(scene().convert("L"), "JPEG"), "jpg"),
    "palette": (lambda: encoded(scene().convert("P"), "PNG"), "png"),
    "16 bits": (lambda: encoded(Image.fromarray(grey().astype(np.uint16) * 257), "PNG"), "png"),
    "alpha": (lambda: encoded(with_alpha(), "PNG"), "png"),
    "BMP": (lambda: encoded(scene(), "BMP"), "bmp"),
}


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = orientation
    return exif


def grey() -> np.ndarray:
    return np.asarray(scene().convert("L"))


def with_alpha() -> Image.Image:
    image = scene().convert("RGBA")
    image.putalpha(Image.fromarray(grey()))
    return image


def test_odd_images_are_read_as_the_pipeline_reads_them(embedder, tmp_path):
    """EXIF, grey, palette, 16 bits, alpha: packed as they are, decoded by DALI, and by us."""
    lines = ["path,pid,modality,split"]
    for pid, (name, (make, suffix)) in enumerate(ODD.items()):
        (tmp_path / f"{pid}.{suffix}").write_bytes(make())
        lines.append(f"{pid}.{suffix},{pid},{'infrared' if name == 'grey' else 'visible'},test")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    index = ShardIndex.open(manifest.pack(tmp_path, tmp_path / "set", tmp_path / "list.csv").folder)
    reader, seen = ShardReader(index), []
    size = embedder.height, embedder.width
    for images_BCHW, rows in EvaluationPipeline(index, np.arange(len(ODD)), *size, batch_size=1):
        name = list(ODD)[int(index.columns["pid"][rows[0]])]
        difference = (embedder.read(reader.read(int(rows[0])).tobytes(), Modality.VISIBLE) - images_BCHW[0]).abs().max()
        assert difference < 1.01 * LEVEL, name
        seen.append(name)
    assert sorted(seen) == sorted(ODD)


def test_paths_bytes_images_and_arrays_are_one(embedder, tmp_path):
    data = encoded(scene(), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    pixels = np.asarray(scene())
    images = [tmp_path / "a.png", str(tmp_path / "a.png"), data, scene(), pixels, np.dstack([pixels, pixels[..., :1]])]
    found_BD = embedder.embed(images, "visible", batch_size=4)
    assert found_BD.dtype == np.float32
    assert found_BD.shape == (6, embedder.embedding_width())
    np.testing.assert_allclose(found_BD, np.repeat(found_BD[:1], 6, axis=0), atol=1e-6)
    np.testing.assert_array_equal(decode(grey()), np.repeat(grey()[..., None], 3, axis=2))


def test_an_embedding_that_is_none_is_refused(embedder):
    for ask in (lambda: embedder.embed([scene()], "visible", "global"), lambda: embedder.embedding_width("global")):
        with pytest.raises(InputError, match="'global'"):
            ask()


def test_embed_is_the_models(embedder):
    image_1CHW = embedder.read(scene(), Modality.VISIBLE)[None]
    for modality in Modality:
        with torch.inference_mode():
            expected = embedder.model.embed(image_1CHW, modality, embedder.usual_embedding).numpy()
        np.testing.assert_array_equal(embedder.embed([scene()], modality), expected)
    assert np.abs(embedder.embed([scene()], "visible") - embedder.embed([scene()], "infrared")).max() > 1e-3


@pytest.mark.parametrize("embedding", get_args(Embedding))
def test_flip_is_the_normalised_mean_with_the_mirror_image(embedder, embedding):
    image_1CHW = embedder.read(scene(), Modality.VISIBLE)[None]
    both_2D = embedder.embed_prepared(torch.cat([image_1CHW, image_1CHW.flip(3)]), Modality.VISIBLE, embedding)
    mean_D = both_2D.sum(axis=0) / np.linalg.norm(both_2D.sum(axis=0))
    found_1D = embedder.embed([scene()], "visible", embedding, flip=True)
    assert found_1D.shape == (1, embedder.embedding_width(embedding))
    np.testing.assert_allclose(found_1D[0], mean_D, atol=1e-5)
    assert np.abs(both_2D[0] - mean_D).max() > 1e-4


def test_no_images_give_no_rows(embedder):
    assert embedder.embed([], "visible").shape == (0, embedder.embedding_width())


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (b"hello", "not an image in a known format"),
        (encoded(scene(), "GIF"), "not an image in a known format"),
        (encoded(scene(), "JPEG")[:-200], "truncated"),
        (encoded(scene(), "PNG")[:300], "truncated"),
        (bomb(), "bomb"),
        (encoded(scene(9000, 8000), "BMP")[:200], "9000 x 8000 pixels"),
        (np.zeros((0, 4, 3), np.uint8), "uint8 [0, 4, 3]"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4, 2), np.uint8), "[4, 4, 2]"),
    ],
    ids=["text", "gif", "cut jpeg", "cut png", "bomb", "large", "empty", "floats", "two channels"],
)
def test_what_is_no_image_is_refused(embedder, source, says):
    with pytest.raises(InputError) as raised:
        embedder.embed([source], "visible")
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


SINGLE = {
    "pixels": np.zeros((4, 5, 3), np.uint8),
    "grey": np.zeros((4, 5), np.uint8),
    "grey with its channel": np.zeros((4, 5, 1), np.uint8),
    "pixels with alpha": np.zeros((4, 5, 4), np.uint8),
    "one number": np.uint8(3) * np.ones(()),
    "a row": np.zeros(9, np.uint8),
    "text": "a.jpg",
    "path": Path("a.jpg"),
    "bytes": b"\xff\xd8",
    "Pillow's": scene(),
    "a number": 3,
    "nothing": None,
}


@pytest.mark.parametrize("kind", SINGLE)
def test_a_single_image_is_not_taken_apart(embedder, kind):
    with pytest.raises(InputError, match="images: "):
        embedder.embed(SINGLE[kind], "visible")


def test_any_collection_of_images_is_a_list(embedder):
    pixels = np.asarray(scene())
    expected_BD = embedder.embed([pixels, pixels], "visible")
    for images in (np.stack([pixels, pixels]), (pixels, pixels), (one for one in (pixels, pixels))):
        np.testing.assert_array_equal(embedder.embed(images, "visible"), expected_BD)
    grey_BD = embedder.embed([grey(), grey()], "visible")
    np.testing.assert_array_equal(embedder.embed(np.stack([grey(), grey()]), "visible"), grey_BD)


@pytest.mark.parametrize("bad", [np.zeros((0, 4, 3), np.uint8), b"", b"x", torch.zeros(3, 4, 4), 7, None, scene().size])
def test_the_bad_one_among_many_is_named(embedder, bad):
    with pytest.raises(InputError, match=r"images\[2\]"):
        embedder.embed([scene(), scene(), bad, scene()], "visible", batch_size=2)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, np.float32, np.float64])
def test_grey_arrays_of_other_numbers_go_through_the_range(embedder, dtype):
    array = grey().astype(dtype) * 4 + dtype(7000)
    expected = np.repeat(grey()[..., None], 3, axis=2)
    for shaped in (array, array[..., None]):
        np.testing.assert_array_equal(embedder.pixels(shaped, "infrared", thermal_range=(7000, 8020)), expected)
    assert embedder.embed([array], "infrared", thermal_range=(7000, 8020)).shape[0] == 1


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), bool),
        np.zeros((4, 4), complex),
        np.zeros((4, 4), object),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((4, 4), "U1"),
    ],
)
def test_arrays_of_something_else_are_refused(embedder, array):
    with pytest.raises(InputError, match=re.escape(f"{array.dtype} {list(array.shape)}")):
        embedder.embed([array], "visible", thermal_range="per-image")


def test_bad_paths_are_refused_by_name(embedder, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "big.jpg").write_bytes(bytes(2**20 + 1))
    for name in ("pipe.jpg", "none.jpg", "."):
        with pytest.raises(InputError, match=re.escape(str(tmp_path / name))):
            embedder.read(tmp_path / name, Modality.VISIBLE)
    with pytest.raises(InputError, match=r"big\.jpg has 1,048,577 bytes"):
        embedder.read(tmp_path / "big.jpg", Modality.VISIBLE, Limits(mib=1))


def test_of_an_animation_the_first_picture_counts():
    first, second = scene(), scene().rotate(180)
    data = encoded(first, "WEBP", save_all=True, append_images=[second], lossless=True)
    np.testing.assert_array_equal(decode(data), np.asarray(first))


def test_a_wrong_modality_is_named(embedder):
    with pytest.raises(InputError, match="'thermal'"):
        embedder.embed([scene()], "thermal")


def test_images_below_a_folder_keep_inside(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside / "deep", outside):
        folder.mkdir(parents=True)
    for path in (inside / "deep" / "b.JPG", inside / "a.png", inside / "notes.txt", outside / "c.png"):
        path.write_bytes(b"")
    (inside / "link.png").symlink_to(outside / "c.png")
    (inside / "linked").symlink_to(outside)
    (inside / "own.png").symlink_to(inside / "a.png")
    assert images_below(inside) == [inside / "a.png", inside / "deep" / "b.JPG", inside / "own.png"]
    assert [text.split(":")[0] for text in left_out_below(inside)] == [
        str(inside / name) for name in ("link.png", "linked", "notes.txt")
    ]
    with pytest.raises(InputError, match=r"a\.png"):
        images_below(inside / "a.png")


def test_load_takes_a_run_or_its_file_and_nothing_else(untrained_run, embedder, tmp_path):
    assert Embedder.load(str(untrained_run / "model.safetensors")).model_sha256 == embedder.model_sha256
    (tmp_path / "model.safetensors").write_bytes(b"hello")
    for path in (tmp_path, tmp_path / "none", untrained_run / "config.yaml"):
        with pytest.raises(InputError, match=re.escape(str(path))):
            Embedder.load(path)
    with pytest.raises(InputError, match="'nothing'"):
        Embedder.load(untrained_run, "nothing")


def zero_hash(**switches: object) -> str:
    model = tiny_model(**switches)
    for tensor in model.state_dict().values():
        tensor.zero_()
    return weights_sha256(model)


def test_a_model_keeps_its_hash_when_settings_are_added():
    """Catalogues name their model by this hash: if it changes, every user has to embed the gallery again."""
    assert zero_hash() == "89f38158231131da43fad314b914f05b93bd9f850723adc1cad3f36c84b011c0"
    assert zero_hash(ipcam={"part_weight": 0.5}) != zero_hash()
