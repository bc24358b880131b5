"""Which gallery images a trial uses: the data set authors' permutations, or the seeded draw of most Python papers."""

import random
from pathlib import Path

import numpy as np
import scipy.io

from tacaf.vocabulary import InputError

PERMUTATIONS_FILE = "rand_perm_cam.mat"
MULTI_SHOT_NOTE = (
    "the literature defines its seeded draw for one shot only; here random.sample of the same generator takes "
    "min(shots, images) of each folder (ours)"
)

# (pid, camid) -> rows of its images, image numbers ascending; pids ascending, then cameras.
Folders = dict[tuple[int, int], np.ndarray]


def folders(rows: np.ndarray, pid: np.ndarray, camid: np.ndarray, number: np.ndarray) -> Folders:
    """Group `rows` as a data set's folders do. pid, camid and number are whole columns, indexed by `rows`."""
    order = rows[np.lexsort((number[rows], camid[rows], pid[rows]))]
    keys = np.stack([pid[order], camid[order]], axis=1)
    starts = np.flatnonzero(np.any(keys[1:] != keys[:-1], axis=1)) + 1
    return {(int(pid[part[0]]), int(camid[part[0]])): part for part in np.split(order, starts) if part.size}


def draw_literature(gallery: Folders, trial: int, shots: int) -> np.ndarray:
    """Rows of trial 0, 1, ...: `random.seed(trial)`, then one choice per folder, pids then cameras ascending.

    Source: the public Python code of AGW, CAJ, DDAG, LbA and DEEN, with Python 3's `random.choice` over the sorted file
    names; the image number stands for the place of the name in that order. More than one shot is not defined there: we
    take `random.sample` of the same generator, min(shots, images) of each folder, and say so in the result.
    """
    generator = random.Random(trial)
    chosen: list[int] = []
    for rows in gallery.values():
        images = rows.tolist()
        chosen += [generator.choice(images)] if shots == 1 else generator.sample(images, min(shots, len(images)))
    return np.asarray(chosen, np.int64)


def draw_official(gallery: Folders, number: np.ndarray, permutations: np.ndarray, trial: int, shots: int) -> np.ndarray:
    """Rows of trial 0, 1, ... after the authors' file: row `trial` of camera and pid, its first `shots` image numbers.

    permutations: what `load_permutations` gives. Raises InputError where a folder has another number of images than the
    file says, since then the numbers would mean other images.
    """
    chosen: list[int] = []
    for (pid, camid), rows in gallery.items():
        table = _folder_permutations(permutations, pid, camid)
        if not np.array_equal(np.sort(number[rows]), np.arange(1, table.shape[1] + 1)):
            raise InputError(
                f"expected images 1..{table.shape[1]} of pid {pid}, camera {camid} (official draw), got {len(rows)} "
                f"images numbered {number[rows].min()}..{number[rows].max()}; extract the whole test set, or use the "
                "literature draw"
            )
        if trial >= len(table):
            raise InputError(
                f"expected at most {len(table)} trials of the official draw, got {trial + 1}; lower trials"
            )
        chosen += [int(rows[image - 1]) for image in table[trial, :shots]]
    return np.asarray(chosen, np.int64)


def find_permutations(splits: Path | None) -> Path | None:
    """The authors' permutation file: `splits` itself, or in that folder, or in its `exp`; None if there is none."""
    if splits is None:
        return None
    if not splits.exists():
        raise InputError(
            f"expected a folder or a .mat file for the splits, got {splits}, which is not there; check the path"
        )
    if splits.is_file():
        return splits
    candidates = (splits / PERMUTATIONS_FILE, splits / "exp" / PERMUTATIONS_FILE)
    return next((path for path in candidates if path.is_file()), None)


def load_permutations(path: Path) -> np.ndarray:
    """`rand_perm_cam` of the MATLAB file: [cameras, 1] cells of [pids, 1] cells of [trials, images], all 1-based."""
    try:
        cameras = scipy.io.loadmat(path)["rand_perm_cam"]
        if cameras.dtype != object or not all(cell.dtype == object for cell in cameras.ravel()):
            raise ValueError("rand_perm_cam is not a cell array of cell arrays")
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise InputError(
            f"expected the data set authors' {PERMUTATIONS_FILE} with rand_perm_cam, got {path}: {error}; "
            "take the file from their evaluation program"
        ) from error
    return cameras


def _folder_permutations(permutations: np.ndarray, pid: int, camid: int) -> np.ndarray:
    """[trials, images] of one folder; the file keeps an empty cell where a pid was not seen by a camera."""
    cameras = permutations.ravel()
    if 1 <= camid <= len(cameras):
        pids = cameras[camid - 1].ravel()
        if 1 <= pid <= len(pids) and pids[pid - 1].size:
            return np.atleast_2d(pids[pid - 1])
    raise InputError(
        f"expected a permutation for pid {pid}, camera {camid} in the official file, got none; it belongs to another "
        "data set or the pids are not its own: use the literature draw"
    )
