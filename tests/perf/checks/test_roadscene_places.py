"""The set of places: what is drawn, that no scene is in two splits, and that it can be packed."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perf.checks.roadscene_places import main, splits_of
from shards.sources.manifest import pack
from shards.verify import verify
from tacaf.files import sha256_of
from tacaf.images import decode
from tacaf.vocabulary import Split

SCENES = 10


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """Aligned frames: the infrared one is the negative of the visible one. The last scene has no texture."""
    folder = tmp_path_factory.mktemp("scenes")
    draw = np.random.default_rng(1)
    for kind in ("visible", "infrared"):
        (folder / kind).mkdir()
    for number in range(SCENES):
        grey = draw.integers(0, 256, (64, 120), np.uint8) if number < SCENES - 1 else np.full((64, 120), 90, np.uint8)
        Image.fromarray(np.repeat(grey[..., None], 3, axis=2)).save(folder / "visible" / f"{number}.jpg")
        Image.fromarray(255 - grey).save(folder / "infrared" / f"{number}.jpg")
    return folder


def make(scenes: Path, out: Path, *more: str) -> int:
    return main(
        ["--visible", str(scenes / "visible"), "--infrared", str(scenes / "infrared"), "--out", str(out), *more]
    )


def test_a_set_that_packs(scenes, tmp_path, capsys):
    assert make(scenes, tmp_path / "a") == 0
    rows = list(csv.DictReader((tmp_path / "a" / "manifest.csv").read_text().splitlines()))
    places = len({row["pid"] for row in rows})
    assert capsys.readouterr().out == f"{places} places, {12 * places} images\n"
    assert SCENES - 1 <= places <= 5 * (SCENES - 1), "every scene with texture has a place, the flat one has none"
    assert set(Counter((row["pid"], row["modality"], row["camid"]) for row in rows).values()) == {6}
    assert {row["modality"]: row["camid"] for row in rows} == {"visible": "1", "infrared": "2"}
    with Image.open(tmp_path / "a" / rows[0]["path"]) as image:
        assert (image.size, image.mode) == ((72, 144), "RGB")
    pack(tmp_path / "a", tmp_path / "shards", tmp_path / "a" / "manifest.csv", name="places")
    assert verify(tmp_path / "shards") == []


def test_the_seed_alone_decides(scenes, tmp_path):
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert make(scenes, tmp_path / name, "--seed", seed) == 0
    image = Path("visible/00001/00.jpg")
    same, again, other = (sha256_of(tmp_path / name / image) for name in "abc")
    assert same == again != other


def test_crops_of_the_two_sensors_do_not_line_up(scenes, tmp_path):
    assert make(scenes, tmp_path / "a") == 0
    images = [decode((tmp_path / "a" / kind / "00001/00.jpg").read_bytes()) for kind in ("visible", "infrared")]
    assert np.abs(images[0].astype(int) - (255 - images[1].astype(int))).mean() > 20


def test_a_third_is_for_the_test_and_a_tenth_for_validation():
    splits = splits_of(221, np.random.default_rng(0))
    assert Counter(splits) == {Split.TEST: 73, Split.VAL: 22, Split.TRAIN: 126}
    assert splits != sorted(splits)


def test_what_is_refused(scenes, tmp_path, capsys):
    assert make(scenes, scenes) == 2
    assert "already exists" in capsys.readouterr().err
    (tmp_path / "visible").mkdir()
    (tmp_path / "infrared").mkdir()
    assert make(tmp_path, tmp_path / "out") == 2
    assert "no *.jpg in" in capsys.readouterr().err
    (tmp_path / "visible/1.jpg").write_bytes(b"no image")
    assert make(tmp_path, tmp_path / "out") == 2
    assert "got 1.jpg in one folder only" in capsys.readouterr().err
    (tmp_path / "infrared/1.jpg").write_bytes(b"no image")
    assert make(tmp_path, tmp_path / "out") == 2
    assert "1.jpg: not an image in a known format" in capsys.readouterr().err
    assert make(scenes, tmp_path / "other", "--seed", "-1") == 2
    assert "--seed of at least 0, got -1" in capsys.readouterr().err
