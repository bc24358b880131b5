"""Writes a procedural visible-infrared pedestrian set in the exact folder layout of a public set.

Every picture is a pure function of (seed, pid, camera, number), so the files are the same for any number of workers.
The set is for demos and tests; results on it predict nothing about the public sets. Source: ours; layouts: SYSU-MM01,
RegDB, LLCM.
"""

import io
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from shards.pedestrians.scene import Difficulty, draw_camera, draw_view, render
from shards.pedestrians.wardrobe import PRESENCE, SPLIT, dice, draw_person
from tacaf.datasets import REGDB, SYSU_MM01
from tacaf.draws import Stream, permutation
from tacaf.files import whole_folder
from tacaf.vocabulary import InputError, Modality

GENERATOR_VERSION = 1  # changes whenever the pictures of a seed change
BENCHMARK = Difficulty()
LEAST_IDENTITIES = 8
REGDB_IMAGES = 10  # of each modality, as in the real set
_POOL_FROM = 200  # for fewer pictures, starting other processes takes longer than drawing
_CHUNK = 32


@dataclass(frozen=True)
class Shot:
    """One picture to make: what it shows, and its path inside the set. `number` is 1-based."""

    pid: int
    camid: int
    modality: Modality
    number: int
    location: int = 0  # cameras of one location look at the same place
    path: str = ""


@dataclass(frozen=True)
class _World:
    seed: int
    height: int
    difficulty: Difficulty
    root: str


def camera_key(camid: int, modality: Modality) -> int:
    """The key of a camera's random draws; a camera that sees both modalities counts as two."""
    return camid + 1000 * modality.code


def picture(seed: int, shot: Shot, height: int = 256, difficulty: Difficulty = BENCHMARK) -> tuple[np.ndarray, int]:
    """The pixels of a shot (uint8 [H, W, 3]) and the JPEG quality of its camera: a pure function of the arguments."""
    key = camera_key(shot.camid, shot.modality)
    camera = draw_camera(seed, key, shot.location, shot.modality, difficulty)
    view = draw_view(seed, shot.pid, key, shot.number, camera, difficulty)
    return render(_person(seed, shot.pid), view, camera, shot.modality, height), view.quality


_person = lru_cache(maxsize=64)(draw_person)


def _write(world: _World, shots: list[Shot]) -> int:
    for shot in shots:
        pixels, quality = picture(world.seed, shot, world.height, world.difficulty)
        path = Path(world.root, shot.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        encoded = io.BytesIO()
        if path.suffix == ".bmp":
            Image.fromarray(pixels).save(encoded, "BMP")
        else:
            Image.fromarray(pixels).save(encoded, "JPEG", quality=quality)
        path.write_bytes(encoded.getvalue())
    return len(shots)


def _present(seed: int, pid: int, visible: Iterable[int], infrared: Iterable[int]) -> set[int]:
    """The keys of the cameras that saw `pid`: most of the cameras, and at least one of each modality."""
    d = dice(PRESENCE, seed, 0, pid)
    keys = set()
    for modality, cameras in ((Modality.VISIBLE, tuple(visible)), (Modality.INFRARED, tuple(infrared))):
        sure = d.choice(cameras)
        for camid in cameras:
            if d.chance(0.88) or camid == sure:
                keys.add(camera_key(camid, modality))
    return keys


def _shares(seed: int, identities: int) -> dict[str, list[int]]:
    """The sorted pids (1-based) of train, val and test, about 60, 20 and 20 % of all."""
    order = permutation(identities, Stream.SYNTH, seed, SPLIT, 0) + 1
    part = max(2, round(identities * 0.2))
    shares = {"test": order[:part], "val": order[part : 2 * part], "train": order[2 * part :]}
    return {name: sorted(pids.tolist()) for name, pids in shares.items()}


def _sysu_mm01(seed: int, identities: int, images: int) -> tuple[list[Shot], dict[str, str]]:
    visible, infrared = (SYSU_MM01.cameras[modality] for modality in Modality)
    shots = []
    for pid in range(1, identities + 1):
        seen = _present(seed, pid, visible, infrared)
        for camid, modality in SYSU_MM01.modality_of_camera.items():
            if camera_key(camid, modality) in seen:
                for number in range(1, images + 1):
                    path = f"cam{camid}/{pid:04d}/{number:04d}.jpg"
                    shots.append(Shot(pid, camid, modality, number, SYSU_MM01.locations[camid], path))
    lists = {**_shares(seed, identities), "available": list(range(1, identities + 1))}
    return shots, {f"exp/{name}_id.txt": ",".join(map(str, pids)) + "\n" for name, pids in lists.items()}


def _regdb(seed: int, identities: int, images: int) -> tuple[list[Shot], dict[str, str]]:
    """Ten images of each modality, as in the real set, whatever `images` is. The ten splits are random halves."""
    folders = {Modality.VISIBLE: ("Visible", "v"), Modality.INFRARED: ("Thermal", "t")}
    shots = [
        Shot(pid, 0, modality, number, 0, f"{folder}/{pid}/person_{letter}_{number:05d}_{pid}.bmp")
        for modality, (folder, letter) in folders.items()
        for pid in range(1, identities + 1)
        for number in range(1, REGDB_IMAGES + 1)
    ]
    texts = {}
    for split in REGDB.numbered_splits:
        order = permutation(identities, Stream.SYNTH, seed, SPLIT, split) + 1
        half = identities // 2
        for part, pids in (("train", order[:half]), ("test", order[half:])):
            label = {pid: number for number, pid in enumerate(sorted(pids.tolist()))}
            for modality, (folder, _) in folders.items():
                lines = [f"{s.path} {label[s.pid]}\n" for s in shots if s.modality is modality and s.pid in label]
                texts[f"idx/{part}_{folder.lower()}_{split}.txt"] = "".join(lines)
    return shots, texts


def _llcm(seed: int, identities: int, images: int) -> tuple[list[Shot], dict[str, str]]:
    """Two thirds of the identities are for training (vis/, nir/ with lists), the others for the test (test_*/camN/)."""
    order = permutation(identities, Stream.SYNTH, seed, SPLIT, 0) + 1
    test = sorted(order[: identities // 3].tolist())
    train = sorted(order[identities // 3 :].tolist())
    label = {pid: number for number, pid in enumerate(train)}
    cameras = {Modality.VISIBLE: range(1, 10), Modality.INFRARED: (1, 2, 4, 5, 6, 7, 8, 9)}
    shots, lines = [], {"vis": "", "nir": ""}
    for pid in range(1, identities + 1):
        seen = _present(seed, pid, cameras[Modality.VISIBLE], cameras[Modality.INFRARED])
        for modality, name in ((Modality.VISIBLE, "vis"), (Modality.INFRARED, "nir")):
            for camid in cameras[modality]:
                if camera_key(camid, modality) not in seen:
                    continue
                for number in range(1, images + 1):
                    file = f"{pid:04d}_c{camid:02d}_f{number:04d}_{name}.jpg"
                    folder = f"{name}/{pid:04d}" if pid in label else f"test_{name}/cam{camid}/{pid:04d}"
                    shots.append(Shot(pid, camid, modality, number, camid, f"{folder}/{file}"))
                    if pid in label:
                        lines[name] += f"{folder}/{file} {label[pid]}\n"
    texts = {f"idx/train_{name}.txt": text for name, text in lines.items()}
    return shots, {**texts, "idx/test_id.txt": ",".join(map(str, test)) + "\n"}


_LAYOUTS: dict[str, Callable[[int, int, int], tuple[list[Shot], dict[str, str]]]] = {
    "sysu_mm01": _sysu_mm01,
    "regdb": _regdb,
    "llcm": _llcm,
}


_RANGES = {  # of the integer arguments of `synthesise`
    "identities": (LEAST_IDENTITIES, 9999),
    "seed": (0, 2**32 - 1),
    "images_per_camera": (1, 9999),
    "height": (32, 2048),
    "workers": (1, 1024),
}


def _check(out: Path, layout: str, numbers: Mapping[str, int]) -> None:
    """Raises InputError if the layout is unknown, a number is out of range, or the folder is not empty."""
    if layout not in _LAYOUTS:
        raise InputError(f"expected a layout of {', '.join(_LAYOUTS)}, got {layout!r}; choose one of them")
    for name, (low, high) in _RANGES.items():
        value = numbers[name]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InputError(f"expected {name} to be a whole number from {low} to {high}, got {value!r}; change {name}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"expected a new or empty folder, got {out} with files in it; remove it or choose another")


def synthesise(
    out: Path,
    layout: str = "sysu_mm01",
    *,
    identities: int = 64,
    seed: int = 0,
    images_per_camera: int = 4,
    height: int = 256,
    workers: int | None = None,
    difficulty: Difficulty = BENCHMARK,
    texts: Mapping[str, str] | None = None,
) -> dict[str, int | str]:
    """Write a procedural set to the folder `out`, which must be new or empty. Returns facts about it for a message.

    `height` is in pixels and varies by 10 % between pictures. `workers` is the number of processes (None: one per core
    that this process may use); the files do not depend on it. `regdb` always has ten images of each modality. `texts`
    maps the names of additional files to their content.
    Raises InputError if an argument is invalid. Everything is written beside `out` and renamed at the end, so `out`
    does not exist after a failure.
    """
    out = Path(out)
    numbers = {"identities": identities, "seed": seed, "images_per_camera": images_per_camera, "height": height}
    _check(out, layout, {**numbers, "workers": 1 if workers is None else workers})
    shots, lists = _LAYOUTS[layout](seed, identities, images_per_camera)
    out.resolve().parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(out.resolve(), sync=False) as folder:
        _write_all(_World(seed, height, difficulty, str(folder)), shots, workers)
        for name, text in {**lists, **(texts or {})}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    visible = sum(shot.modality is Modality.VISIBLE for shot in shots)
    return {
        "layout": layout,
        "identities": identities,
        "images": len(shots),
        "visible": visible,
        "infrared": len(shots) - visible,
        "cameras": len({(shot.camid, shot.modality) for shot in shots}),
        "seed": seed,
        "generator_version": GENERATOR_VERSION,
    }


def _write_all(world: _World, shots: list[Shot], workers: int | None) -> None:
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers == 1 or len(shots) < _POOL_FROM:
        _write(world, shots)
        return
    chunks = [shots[start : start + _CHUNK] for start in range(0, len(shots), _CHUNK)]
    # spawn, because forking a process that already runs threads, such as torch's, can hang
    with ProcessPoolExecutor(min(workers, len(chunks)), mp_context=get_context("spawn")) as pool:
        for _ in pool.map(_write, [world] * len(chunks), chunks):
            pass
