"""The procedural set: exact layouts, the same files from a seed, and no colour short cut between the modalities."""

import re

import numpy as np
import pytest
from PIL import Image

from shards.pedestrians.synth import Shot, picture, synthesise
from tacaf.vocabulary import InputError, Modality
from tests.shards.raw import snapshot

SMALL = {"identities": 8, "images_per_camera": 2, "height": 48}
INFRARED_CAMERAS = (3, 6)


@pytest.mark.slow
def test_a_seed_gives_the_same_files_whatever_the_workers(tmp_path):
    for name, seed, workers in (("a", 5, 1), ("b", 5, 2), ("c", 6, 1)):
        synthesise(tmp_path / name, identities=16, images_per_camera=4, height=48, seed=seed, workers=workers)
    first, again, other = (snapshot(tmp_path / name) for name in "abc")
    assert len(first) > 200, "enough for several processes"
    assert first == again
    assert not set(first.values()) & {data for name, data in other.items() if name.endswith(".jpg")}


def test_the_sysu_mm01_layout_is_exact(tmp_path):
    made = synthesise(tmp_path / "raw", workers=1, **SMALL)
    files = sorted(str(path.relative_to(tmp_path / "raw")) for path in (tmp_path / "raw").rglob("*.*"))
    images = [name for name in files if name.endswith(".jpg")]
    assert all(re.fullmatch(r"cam[1-6]/\d{4}/000[12]\.jpg", name) for name in images)
    assert sorted(set(files) - set(images)) == [f"exp/{name}_id.txt" for name in ("available", "test", "train", "val")]
    lists = {
        name: [int(pid) for pid in (tmp_path / f"raw/exp/{name}_id.txt").read_text().strip().split(",")]
        for name in ("train", "val", "test", "available")
    }
    assert sorted(lists["train"] + lists["val"] + lists["test"]) == lists["available"] == list(range(1, 9))
    assert made["images"] == len(images) == made["visible"] + made["infrared"]
    for pid in range(1, 9):
        cameras = {int(name[3]) for name in images if f"/{pid:04d}/" in name}
        assert cameras & {3, 6}, "every identity is in an infrared camera"
        assert cameras & {1, 2, 4, 5}, "and in a visible one"
    for name in images[::5]:
        with Image.open(tmp_path / "raw" / name) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        colour = np.abs(pixels - pixels.mean(axis=2, keepdims=True)).max()
        assert (colour < 3) == (int(name[3]) in INFRARED_CAMERAS), name


@pytest.mark.parametrize(
    ("layout", "image"),
    [
        ("regdb", r"(Visible|Thermal)/\d+/person_[vt]_\d{5}_\d+\.bmp"),
        ("llcm", r"(test_)?(vis|nir)/(cam\d/)?\d{4}/\d{4}_c\d\d_f\d{4}_(vis|nir)\.jpg"),
    ],
)
def test_the_other_layouts(layout, image, tmp_path):
    synthesise(tmp_path / "raw", layout=layout, workers=1, **SMALL)
    files = [str(path.relative_to(tmp_path / "raw")) for path in (tmp_path / "raw").rglob("*.*")]
    images = [name for name in files if re.fullmatch(image, name)]
    assert len(images) > 40
    assert all(re.fullmatch(r"idx/\w+\.txt", name) for name in set(files) - set(images))


def histogram(pixels: np.ndarray, colour: bool) -> np.ndarray:
    """Six stripes; in each the joint histogram of red, green, blue, or the histogram of grey."""
    stripes = []
    for stripe in np.array_split(pixels, 6):
        flat = stripe.reshape(-1, 3) if colour else stripe.reshape(-1, 3).mean(axis=1, keepdims=True)
        bins = 6 if colour else 24
        counts, _ = np.histogramdd(flat, bins=[bins] * flat.shape[1], range=[(0, 256)] * flat.shape[1])
        stripes.append(counts.ravel() / counts.sum())
    return np.concatenate(stripes)


def rank1(query: list[np.ndarray], gallery: list[np.ndarray]) -> float:
    """Query i and gallery i are of one identity."""
    distance = np.array([[np.abs(q - g).sum() for g in gallery] for q in query])
    return float(np.mean(distance.argmin(axis=1) == np.arange(len(query))))


@pytest.fixture(scope="module")
def looks() -> dict[str, list[list[np.ndarray]]]:
    """96 identities over four seeds: camera name -> sets of 24 pictures."""
    views = {
        "visible": (1, Modality.VISIBLE, 1),
        "visible, same camera": (1, Modality.VISIBLE, 2),
        "infrared": (3, Modality.INFRARED, 1),
    }
    return {
        name: [
            [picture(seed, Shot(pid, camid, modality, number), height=96)[0] for pid in range(1, 25)]
            for seed in range(4)
        ]
        for name, (camid, modality, number) in views.items()
    }


@pytest.mark.parametrize(("colour", "at_least"), [(True, 6), (False, 3)])
def test_a_histogram_is_near_chance_across_the_modalities_and_above_it_within_one(looks, colour, at_least):
    def mean_rank1(query: str, gallery: str) -> float:
        return float(
            np.mean(
                [
                    rank1([histogram(x, colour) for x in q], [histogram(x, colour) for x in g])
                    for q, g in zip(looks[query], looks[gallery], strict=True)
                ]
            )
        )

    chance = 1 / 24
    across, within = mean_rank1("infrared", "visible"), mean_rank1("visible, same camera", "visible")
    assert across <= 2.5 * chance, (across, within)
    assert within >= at_least * chance, (across, within)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"identities": 3}, "expected identities to be a whole number from 8"),
        ({"layout": "market1501"}, "expected a layout of"),
        ({"seed": -1}, "expected seed"),
        ({"height": 8}, "expected height"),
        ({"workers": 0}, "expected workers"),
    ],
)
def test_bad_arguments(options, says, tmp_path):
    with pytest.raises(InputError, match=says):
        synthesise(tmp_path / "raw", **{"identities": 8, **options})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_stays_as_it_is(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match="new or empty"):
        synthesise(tmp_path / "raw", identities=8)
    assert snapshot(tmp_path) == {"raw/mine.txt": b"kept"}


def test_what_a_killed_run_left_is_removed(tmp_path):
    left = tmp_path / ".raw.0123456789abcdef.partial"
    left.mkdir()
    (left / "0001.jpg").write_bytes(b"x")
    synthesise(tmp_path / "raw", identities=8, images_per_camera=1, height=32, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
