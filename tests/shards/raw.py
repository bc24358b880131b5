"""Small raw sets for the packing tests: noise images in the layouts, and reading a shard set with nothing of ours."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards.writer import Record
from tacaf.documents import seal
from tacaf.vocabulary import Modality, Split


def image_bytes(seed: int, kind: str = "JPEG", size: tuple[int, int] = (24, 40)) -> bytes:
    """A noise image of (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, kind)
    return encoded.getvalue()


def write_image(path: Path, seed: int, kind: str = "JPEG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image_bytes(seed, kind))
    return path


def noise_records(root: Path, pids: int = 4, images: int = 2) -> list[Record]:
    """Noise images of `pids` identities, half of them train and half test, in one camera of each modality."""
    records = []
    for pid in range(1, pids + 1):
        for camid, modality in ((1, Modality.VISIBLE), (3, Modality.INFRARED)):
            for number in range(1, images + 1):
                path = write_image(root / f"{camid}/{pid}/{number}.jpg", seed=len(records))
                split = Split.TRAIN if pid <= pids // 2 else Split.TEST
                records.append(Record(path, pid, camid, modality, split, number))
    return records


def noise_splits(pids: int = 4) -> dict[str, list[int]]:
    return {"train": list(range(1, pids // 2 + 1)), "test": list(range(pids // 2 + 1, pids + 1))}


def write_sysu(root: Path) -> Path:
    """The SYSU-MM01 layout by hand: ids 1, 2 train, 3 val, 4 test, 9 in no list; two images in cameras 1, 2, 3, 6."""
    for camid in (1, 2, 3, 6):
        for pid in (1, 2, 3, 4, 9):
            for number in (1, 2):
                write_image(root / f"cam{camid}/{pid:04d}/{number:04d}.jpg", seed=100 * camid + 10 * pid + number)
    for split, ids in {"train": "1,2", "val": "3", "test": "4"}.items():
        (root / "exp").mkdir(exist_ok=True)
        (root / f"exp/{split}_id.txt").write_text(ids + "\n")
    return root


def write_regdb(root: Path, splits: int = 2) -> Path:
    """The RegDB layout by hand: ids 1, 2, 11, 12 with two bitmaps of each modality."""
    lines: dict[str, dict[int, str]] = {"visible": {}, "thermal": {}}
    for kind, folder in (("visible", "Visible"), ("thermal", "Thermal")):
        for pid in (1, 2, 11, 12):
            for name in ("front_v_2", "back_v_10"):  # ascending by name: back first
                write_image(root / folder / str(pid) / f"{name}_{pid}.bmp", seed=pid, kind="BMP")
            names = sorted(path.name for path in (root / folder / str(pid)).iterdir())
            lines[kind][pid] = "".join(f"{folder}/{pid}/{name} 0\n" for name in names)
    (root / "idx").mkdir()
    for split in range(1, splits + 1):
        parts = {"train": (1, 11), "test": (2, 12)} if split % 2 else {"train": (2, 12), "test": (1, 11)}
        for part, pids in parts.items():
            for kind in lines:
                (root / f"idx/{part}_{kind}_{split}.txt").write_text("".join(lines[kind][pid] for pid in pids))
    return root


def write_llcm(root: Path) -> Path:
    """The LLCM layout by hand: ids 5, 7 train in cameras 1, 2; ids 6, 8 test in cameras 1, 2; id 9 in no list."""
    (root / "idx").mkdir(parents=True)
    for name in ("vis", "nir"):
        lines = ""
        for label, pid in enumerate((5, 7)):
            for camid in (1, 2):
                for frame in (30, 4):  # not in the order of the names
                    path = f"{name}/{pid:04d}/{pid:04d}_c{camid:02d}_s1_f{frame:04d}_{name}.jpg"
                    write_image(root / path, seed=pid * camid + frame)
                    lines += f"{path} {label}\n"
        (root / f"idx/train_{name}.txt").write_text(lines)
        for pid in (6, 8, 9):
            for camid in (1, 2):
                write_image(root / f"test_{name}/cam{camid}/{pid:04d}/{pid:04d}_c{camid:02d}_f1.jpg", seed=pid)
    (root / "idx/test_id.txt").write_text("6,8")
    return root


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def samples(folder: Path) -> list[tuple[str, str, bytes, dict]]:
    """(key, extension, image bytes, facts) of every sample in order, read with tarfile and json alone."""
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = [(member.name, tar.extractfile(member).read()) for member in tar]
        for (image_name, image), (facts_name, facts) in zip(members[::2], members[1::2], strict=True):
            key, _, extension = image_name.partition(".")
            assert facts_name == f"{key}.json"
            found.append((key, extension, image, json.loads(facts)))
    return found


def edited(folder: Path, change: Callable[[dict], object] | None = None, **changes: Any) -> Path:
    """The set with its index.json changed, by a function or key by key, and sealed again as who means harm would."""
    path = folder / "index.json"
    values = json.loads(path.read_text()) | changes | {"seal": "0" * 64}
    if change is not None:
        change(values)
    path.write_text(seal(json.dumps(values)))
    return folder


def column(folder: Path, name: str) -> np.ndarray:
    return np.load(folder / "columns" / f"{name}.npy", mmap_mode="r")
