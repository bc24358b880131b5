"""The feature file (`F.npz`): features with the facts about each image, and checks of them."""

import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tacaf.evaluation.archive import read_arrays
from tacaf.files import shown, whole_file
from tacaf.vocabulary import InputError, Modality

ARRAYS = ("features", "pid", "camid", "modality", "number")
LARGE_BYTES = 1 << 30  # larger features stay in their file and are read when they are needed
_CHECKED_ROWS = 1 << 14
_MODALITY_WORDS = tuple(m.value for m in Modality)


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Embeddings of n images, d wide, and the facts about each image. Row i of every array is image i.

    `features` [n, d] float16, float32 or float64; `pid` [n] int64, the data set's own number; `camid` [n] int64, never
    shifted; `modality` [n] uint8, `Modality.code`; `number` [n] int64, the image's 1-based number in its folder of
    camera and pid, file names ascending.
    """

    features: np.ndarray
    pid: np.ndarray
    camid: np.ndarray
    modality: np.ndarray
    number: np.ndarray

    def __len__(self) -> int:
        return len(self.features)

    @property
    def width(self) -> int:
        return int(self.features.shape[1])

    def check(self, where: str = "the features") -> "FeatureSet":
        """Returns this set if it can be scored; otherwise raises InputError with the array, the row and the remedy."""
        self.zero_rows(where)
        return self

    def zero_rows(self, where: str = "the features") -> np.ndarray:
        """Like `check`, but returns the rows whose features are all zero, which have no direction and so no rank."""
        _check_shapes(self, where)
        zero = _check_values(self, where)
        _check_images(self, where)
        return zero

    def save(self, path: Path) -> None:
        """Write `F.npz` atomically."""
        words = np.asarray(_MODALITY_WORDS)[self.modality.astype(np.int64)]
        with whole_file(path) as file:
            np.savez(file, features=self.features, pid=self.pid, camid=self.camid, modality=words, number=self.number)


def load_features(path: Path) -> FeatureSet:
    """Read and check an `F.npz`. Nothing is unpickled: files with object arrays are refused.

    Uncompressed features of more than LARGE_BYTES, as `numpy.savez` writes them, are returned as a numpy.memmap; use
    `read_rows` on it. Raises InputError if the file is missing, not an npz, damaged or empty, if one of the five arrays
    is missing, if their lengths differ, or if there are NaN, infinity or unknown modalities.
    """
    arrays = read_arrays(path, ARRAYS, LARGE_BYTES)
    words = arrays["modality"]
    if words.dtype.kind == "S":
        words = np.char.decode(words, "ascii", "replace")
    if words.dtype.kind != "U":
        raise InputError(
            f'{shown(path)}: expected "visible" and "infrared" as text in modality, got values of type'
            f" {words.dtype}; store text"
        )
    unknown = sorted(set(np.unique(words).tolist()) - set(_MODALITY_WORDS))
    if unknown:
        raise InputError(
            f'{shown(path)}: expected "visible" or "infrared" in modality, got {shown(unknown[0])[:60]!r} in row '
            f"{int(np.flatnonzero(words == unknown[0])[0])}; rename it"
        )
    codes = np.zeros(words.shape, np.uint8)
    for modality in Modality:
        codes[words == modality.value] = modality.code
    facts = {name: _whole_numbers(arrays[name], name, path) for name in ("pid", "camid", "number")}
    return FeatureSet(arrays["features"], modality=codes, **facts).check(shown(path))


def _whole_numbers(array: np.ndarray, name: str, path: Path) -> np.ndarray:
    if array.dtype.kind not in "iu":
        raise InputError(f"{shown(path)}: expected whole numbers in {name}, got {array.dtype}; store integers")
    if array.size and array.dtype.kind == "u" and int(array.max()) > np.iinfo(np.int64).max:
        raise InputError(f"{shown(path)}: expected {name} below 2**63, got {array.max()}; store int64")
    return array.astype(np.int64)


def read_rows(stored_ND: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A copy of these rows. The pages of a memory map are released, or they would count as resident memory."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and np.all(np.diff(rows) == 1):
        copied = np.array(stored_ND[rows[0] : rows[-1] + 1], subok=False)
    else:
        ascending = np.argsort(rows, kind="stable")  # so that the disk is read forwards
        copied = np.empty((len(rows), *stored_ND.shape[1:]), stored_ND.dtype)
        copied[ascending] = stored_ND[rows[ascending]]
    pages = getattr(stored_ND, "_mmap", None)
    if pages is not None:
        pages.madvise(mmap.MADV_DONTNEED)
    return copied


def same_features(one: FeatureSet, other: FeatureSet) -> bool:
    """Whether both have the same images with the same features, in any order of rows and any type of number."""
    if one.features.shape != other.features.shape:
        return False
    facts, others = (np.stack([each.modality, each.pid, each.camid, each.number]) for each in (one, other))
    order, other_order = np.lexsort(facts), np.lexsort(others)
    if not np.array_equal(facts[:, order], others[:, other_order]):
        return False
    for a in range(0, len(one), _CHECKED_ROWS):
        one_ND = read_rows(one.features, order[a : a + _CHECKED_ROWS]).astype(np.float32)
        other_ND = read_rows(other.features, other_order[a : a + _CHECKED_ROWS]).astype(np.float32)
        if not np.array_equal(one_ND, other_ND):
            return False
    return True


def _check_shapes(features: FeatureSet, where: str) -> None:
    shape = features.features.shape
    if len(shape) != 2 or shape[1] == 0:
        raise InputError(f"{where}: expected features of shape [images, width], got {list(shape)}; one row per image")
    if shape[0] == 0:
        raise InputError(f"{where}: expected at least one image, got an empty features array; extract features first")
    for name in ARRAYS[1:]:
        array = getattr(features, name)
        if array.shape != shape[:1]:
            raise InputError(
                f"{where}: expected {shape[0]} values in {name} (one per row of features), got shape "
                f"{list(array.shape)}; the arrays must describe the same images"
            )


def _check_values(features: FeatureSet, where: str) -> np.ndarray:
    """The rows whose features are all zero. Raises InputError for features that cannot be scored. Reads all of them."""
    dtype = features.features.dtype
    if dtype.kind != "f" or dtype.itemsize > 8 or not dtype.isnative:
        raise InputError(
            f"{where}: expected floating-point features (float16, 32 or 64), got {dtype}; store float32 or float64"
        )
    parts = [np.arange(a, min(a + _CHECKED_ROWS, len(features))) for a in range(0, len(features), _CHECKED_ROWS)]
    first_D = np.asarray(features.features[0])
    bad, zero, alike = [], [], 0
    for rows in parts:
        part_ND = read_rows(features.features, rows)
        bad.append(rows[~np.isfinite(part_ND).all(axis=1)])
        zero.append(rows[~part_ND.any(axis=1)])
        alike += int((part_ND == first_D).all(axis=1).sum())
    _refuse_not_finite(features, np.concatenate(bad), where)
    if alike == len(features) > 1:
        raise InputError(
            f"{where}: expected features that differ, got the same ones for all {alike} images; check the model and"
            " extract again"
        )
    return np.concatenate(zero)


def _refuse_not_finite(features: FeatureSet, bad: np.ndarray, where: str) -> None:
    if bad.size:
        row = int(bad[0])
        raise InputError(
            f"{where}: expected finite features, got NaN or infinity in {bad.size} rows, first row {row} "
            f"(pid {features.pid[row]}, camera {features.camid[row]}); check the model and extract again"
        )


def _check_images(features: FeatureSet, where: str) -> None:
    facts = (features.modality, features.pid, features.camid, features.number)
    order = np.lexsort(facts)  # of equal rows, the first comes first
    again = np.all([fact[order[1:]] == fact[order[:-1]] for fact in facts], axis=0)
    if again.any():
        row = int(order[:-1][again].min())
        raise InputError(
            f"{where}: expected each image once, got pid {features.pid[row]}, camera {features.camid[row]}, number "
            f"{features.number[row]} more than once (first row {row}); number the images of a folder 1, 2, 3, ..."
        )
