"""Images as thermal cameras give them: grey counts of 16 bits, of which a scene uses a few hundred or thousand."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from tests.shards.raw import image_bytes

LOW, HIGH = 7000, 8020  # counts of a scene indoors
WIDTH, HEIGHT = 25, 50


def counts(seed: int, low: int = LOW, high: int = HIGH, shape: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """A smooth scene, uint16 [H, W], that reaches both bounds."""
    small = np.random.default_rng(seed).random((6, 4)).astype(np.float32)
    scene = np.asarray(Image.fromarray(small).resize(shape[::-1], Image.Resampling.BICUBIC))
    scene = (scene - scene.min()) / (scene.max() - scene.min())
    return (low + scene * (high - low)).round().astype(np.uint16)


def encoded(image: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def write_manifest(root: Path, infrared: dict[str, bytes], splits: tuple[str, ...] = ("train", "test")) -> Path:
    """A list of as many people as `infrared` has images, by turns in `splits`, each with a visible image: list.csv.

    `infrared` is name -> file; its people are numbered in its order, from 1.
    """
    root.mkdir(parents=True, exist_ok=True)
    lines = ["path,pid,modality,split"]
    for place, (name, data) in enumerate(infrared.items()):
        (root / name).write_bytes(data)
        (root / f"visible{place}.jpg").write_bytes(image_bytes(place))
        split = splits[place % len(splits)]
        lines += [f"{name},{place + 1},infrared,{split}", f"visible{place}.jpg,{place + 1},visible,{split}"]
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    return root / "list.csv"
