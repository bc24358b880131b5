"""Makes a retrieval set of places from aligned pairs of a visible and a thermal frame, as in RoadScene.

    python perf/checks/roadscene_places.py --visible DIR --infrared DIR --out OUT [--seed 0]
    python -m shards pack manifest --csv OUT/manifest.csv --root OUT --out SHARDS --name roadscene_places

Both folders have a JPEG of every scene, under the same name. An identity is a place: a patch of a scene, half as high
as the frame and half as wide as it is high. Its images are crops of the patch, each shifted and scaled. The crops of
the two sensors are drawn separately, so they do not line up. With the 221 scenes of RoadScene and seed 0, the set has
1,075 places and 12,900 images (docs/real_sensors.md).
"""

from tacaf.start import start

if __name__ == "__main__":
    start("perf.checks.roadscene_places")

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tacaf.command import Parser, entry, to_path
from tacaf.files import shown
from tacaf.images import ImageError, decode
from tacaf.vocabulary import InputError, Modality, Split

PLACES = 5  # of a scene, at most
TRIES = 400  # to find them
BORDER = 8  # pixels of the frame, where no patch begins
APART = 0.8  # places of a scene are at least this share of a patch's width apart
TEXTURE = 18  # standard deviation of a visible patch, in grey levels, at least
VIEWS = 6  # crops of a place for each modality
SHIFT, SCALE = 0.12, 0.15  # of the patch, at most
SIZE = (72, 144)  # width and height of an image
QUALITY = 92  # of its JPEG
CAMERAS = {Modality.VISIBLE: 1, Modality.INFRARED: 2}


def splits_of(scenes: int, draw: np.random.Generator) -> list[Split]:
    """The split of every scene: a third is for the test, a tenth for validation, the rest for training."""
    order = draw.permutation(scenes).tolist()
    tests, vals = scenes // 3, scenes // 10
    place = {scene: number for number, scene in enumerate(order)}
    return [
        Split.TEST if place[scene] < tests else Split.VAL if place[scene] < tests + vals else Split.TRAIN
        for scene in range(scenes)
    ]


def corners(grey_HW: np.ndarray, width: int, height: int, draw: np.random.Generator) -> list[tuple[int, int]]:
    """Top left corners (x, y) of patches of this size with some texture, which overlap little."""
    rows, columns = grey_HW.shape
    found: list[tuple[int, int]] = []
    for _ in range(TRIES):
        if len(found) == PLACES:
            break
        x = int(draw.integers(BORDER, max(BORDER + 1, columns - width - BORDER)))
        y = int(draw.integers(BORDER, max(BORDER + 1, rows - height - BORDER)))
        apart = all(abs(x - other) >= APART * width for other, _ in found)
        if apart and grey_HW[y : y + height, x : x + width].std() >= TEXTURE:
            found.append((x, y))
    return found


def views(
    frame: Image.Image, corner: tuple[int, int], size: tuple[int, int], draw: np.random.Generator
) -> Iterator[Image.Image]:
    """The crops of one place from one sensor's frame; what is outside the frame is black."""
    (x, y), (width, height) = corner, size
    for _ in range(VIEWS):
        scale = draw.uniform(1 - SCALE, 1 + SCALE)
        dx, dy = draw.uniform(-SHIFT, SHIFT, 2) * size
        left, top = x + dx + width * (1 - scale) / 2, y + dy + height * (1 - scale) / 2
        box = (round(left), round(top), round(left + width * scale), round(top + height * scale))
        yield frame.crop(box).resize(SIZE, Image.Resampling.BILINEAR).convert("RGB")


def make(visible: Path, infrared: Path, out: Path, seed: int) -> tuple[int, int]:
    """Write the images and their manifest to `out`; returns the numbers of places and images."""
    names = sorted(path.name for path in visible.glob("*.jpg"))
    lacking = [name for name in names if not (infrared / name).is_file()]
    if not names or lacking:
        what = f"{lacking[0]} in one folder only" if lacking else f"no *.jpg in {shown(visible)}"
        raise InputError(f"expected a JPEG of every scene in both folders, under the same name, got {what}")
    draw = np.random.default_rng(seed)
    rows: list[tuple[str, int, int, str, str]] = []
    place = 0
    for name, split in zip(names, splits_of(len(names), draw), strict=True):
        colour = _frame(visible / name, "RGB")
        frames = {Modality.VISIBLE: colour, Modality.INFRARED: _frame(infrared / name, "L").resize(colour.size)}
        size = (colour.height // 2 // 2, colour.height // 2)
        for corner in corners(np.asarray(colour.convert("L"), np.float32), *size, draw):
            place += 1
            for modality, frame in frames.items():
                for number, image in enumerate(views(frame, corner, size, draw)):
                    path = f"{modality}/{place:05d}/{number:02d}.jpg"
                    (out / path).parent.mkdir(parents=True, exist_ok=True)
                    image.save(out / path, quality=QUALITY)
                    rows.append((path, place, CAMERAS[modality], str(modality), str(split)))
    with open(out / "manifest.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "pid", "camid", "modality", "split"), *rows])
    return place, len(rows)


def _frame(path: Path, mode: str) -> Image.Image:
    try:
        return Image.fromarray(decode(path.read_bytes())).convert(mode)
    except ImageError as error:
        raise InputError(f"{shown(path)}: {error}") from None


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visible", type=to_path, required=True, help="folder of the visible frames")
    parser.add_argument("--infrared", type=to_path, required=True, help="folder of the thermal frames")
    parser.add_argument("--out", type=to_path, required=True, help="a new folder")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args(argv)
    if args.out.exists():
        raise InputError(f"{shown(args.out)} already exists; choose a new folder")
    if args.seed < 0:
        raise InputError(f"expected --seed of at least 0, got {args.seed}; change it")
    places, images = make(args.visible, args.infrared, args.out, args.seed)
    print(f"{places} places, {images} images")
    return 0
