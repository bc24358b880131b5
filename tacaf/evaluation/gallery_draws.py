"""Which gallery images a trial uses: the data set authors' permutations, or the seeded draw of most Python papers."""

import random
from pathlib import Path

import numpy as np

from tacaf.files import shown
from tacaf.mat_file import read_mat
from tacaf.vocabulary import InputError

PERMUTATIONS_FILE = "rand_perm_cam.mat"
MULTI_SHOT_NOTE = (
    "the literature defines its seeded draw for one shot only; here random.sample of the same generator takes "
    "min(shots, images) of each folder (ours)"
)

# (pid, camid) -> rows of its images, image numbers ascending; pids ascending, then cameras.
Folders = dict[tuple[int, int], np.ndarray]


def folders(rows: np.ndarray, pid: np.ndarray, camid: np.ndarray, number: np.ndarray) -> Folders:
    """Group `rows` into folders of pid and camera. pid, camid and number are whole columns, indexed by `rows`."""
    order = rows[np.lexsort((number[rows], camid[rows], pid[rows]))]
    keys = np.stack([pid[order], camid[order]], axis=1)
    starts = np.flatnonzero(np.any(keys[1:] != keys[:-1], axis=1)) + 1
    return {(int(pid[part[0]]), int(camid[part[0]])): part for part in np.split(order, starts) if part.size}


def draw_literature(gallery: Folders, trial: int, shots: int) -> np.ndarray:
    """The gallery rows of trial 0, 1, ...: `random.seed(trial)`, then one choice per folder, by pid, then by camera.

    Source: the public Python code of AGW, CAJ, DDAG, LbA and DEEN, with Python 3's `random.choice` over the sorted file
    names; the image number is the position of the name in that order. More than one shot is not defined there: we use
    `random.sample` of the same generator, min(shots, images) from each folder, and state that in the result.
    """
    generator = random.Random(trial)
    chosen: list[int] = []
    for rows in gallery.values():
        images = rows.tolist()
        chosen += [generator.choice(images)] if shots == 1 else generator.sample(images, min(shots, len(images)))
    return np.asarray(chosen, np.int64)


def draw_official(gallery: Folders, number: np.ndarray, permutations: np.ndarray, trial: int, shots: int) -> np.ndarray:
    """The gallery rows of trial 0, 1, ... by the authors' file: the first `shots` image numbers in row `trial`.

    permutations: from `load_permutations`. Raises InputError if a folder has another number of images than in the file,
    because the numbers would then denote other images.
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
        chosen += [int(rows[int(image) - 1]) for image in table[trial, :shots]]
    return np.asarray(chosen, np.int64)


def find_permutations(splits: Path | None) -> Path | None:
    """The authors' permutation file: `splits` itself, or in that folder, or in its `exp`; None without `splits`.

    Raises InputError if the file is not there, because another draw must not replace it silently.
    """
    if splits is None:
        return None
    if splits.is_file():
        return splits
    if not splits.is_dir():
        what = "is neither a folder nor a .mat file" if splits.exists() else "does not exist"
        raise InputError(f"the path for the splits, {shown(splits)}, {what}; check the path")
    candidates = (splits / PERMUTATIONS_FILE, splits / "exp" / PERMUTATIONS_FILE)
    file = next((path for path in candidates if path.is_file()), None)
    if file is None:
        names = sorted(path.name for path in splits.iterdir())
        raise InputError(
            f"expected {PERMUTATIONS_FILE} in {shown(splits)} or its exp, got"
            f" {shown(', '.join(names[:5]) or 'an empty folder')}{', ...' if len(names) > 5 else ''}; take it from the"
            " data set authors' evaluation program, or leave the splits out for the literature draw"
        )
    return file


def load_permutations(path: Path) -> np.ndarray:
    """`rand_perm_cam` of the MATLAB file: [cameras, 1] cells of [pids, 1] cells of [trials, images], all 1-based."""
    try:
        cameras = read_mat(path, "rand_perm_cam")
        _check_cells(cameras)
    except (InputError, ValueError, TypeError) as error:
        reason = shown(" ".join(str(error).split()))[:200]
        raise InputError(
            f"expected the data set authors' {PERMUTATIONS_FILE} with rand_perm_cam, got {shown(path)}: {reason}; "
            "take the file from their evaluation program"
        ) from None
    return cameras


def _check_cells(cameras: np.ndarray) -> None:
    """Raise ValueError unless every cell of every cell contains rows of numbers, each a permutation of 1, 2, ..."""
    for camera in cameras.ravel():
        if cameras.dtype != object or camera.dtype != object:
            raise ValueError("rand_perm_cam is not a cell array of cell arrays")
        for table in camera.ravel():
            if table.dtype == object or table.ndim != 2:
                raise ValueError("a cell of rand_perm_cam does not contain rows of numbers")
            if table.size and (np.sort(table, axis=1) != np.arange(1, table.shape[1] + 1)).any():
                raise ValueError("a cell of rand_perm_cam does not contain permutations of 1, 2, ...")


def _folder_permutations(permutations: np.ndarray, pid: int, camid: int) -> np.ndarray:
    """The permutations of one folder, [trials, images]. The file has an empty cell if a camera did not see a pid."""
    cameras = permutations.ravel()
    if 1 <= camid <= len(cameras):
        pids = cameras[camid - 1].ravel()
        if 1 <= pid <= len(pids) and pids[pid - 1].size:
            return np.atleast_2d(pids[pid - 1])
    raise InputError(
        f"expected a permutation for pid {pid}, camera {camid} in the official file, got none; the file belongs to "
        "another data set, or the pids are not those of the data set: use the literature draw"
    )
