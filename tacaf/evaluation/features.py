"""The plain feature file (`F.npz`): features with the facts about each image, and what makes one unusable."""

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tacaf.vocabulary import InputError, Modality

ARRAYS = ("features", "pid", "camid", "modality", "number")
_MODALITY_WORDS = tuple(m.value for m in Modality)


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Embeddings of n images, d wide, and where each came from. Row i of every array is image i.

    `features` [n, d] float16, float32 or float64; `pid` [n] int64, the number the data set writes; `camid` [n] int64,
    never shifted; `modality` [n] uint8, `Modality.code`; `number` [n] int64, the 1-based number of the image in its
    camera and pid folder, file names ascending.
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
        """This set, if it can be scored; otherwise an InputError that names the array, the row and the mend."""
        _check_shapes(self, where)
        _check_values(self, where)
        _check_modalities(self, where)
        return self

    def save(self, path: Path) -> None:
        """Write `F.npz`, first under a temporary name, so that an older file survives a failure."""
        words = np.asarray(_MODALITY_WORDS)[self.modality.astype(np.int64)]
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("wb") as file:
            np.savez(file, features=self.features, pid=self.pid, camid=self.camid, modality=words, number=self.number)
        os.replace(temporary, path)


def load_features(path: Path) -> FeatureSet:
    """Read and check an `F.npz`. Nothing is unpickled: a file with object arrays is refused.

    Raises InputError for a file that is missing, not an npz, without one of the five arrays, empty, of mismatched
    lengths, with NaN or infinity, with an unknown modality word, or with one modality only.
    """
    arrays = _read_arrays(path)
    words = arrays["modality"]
    if words.dtype.kind == "S":
        words = np.char.decode(words, "ascii", "replace")
    if words.dtype.kind != "U":
        raise InputError(
            f'{path}: expected the words "visible" and "infrared" in modality, got values of type {words.dtype}; '
            "write the words"
        )
    unknown = sorted(set(np.unique(words).tolist()) - set(_MODALITY_WORDS))
    if unknown:
        raise InputError(
            f'{path}: expected "visible" or "infrared" in modality, got {unknown[0]!r} in row '
            f"{int(np.flatnonzero(words == unknown[0])[0])}; rename it"
        )
    codes = np.zeros(words.shape, np.uint8)
    for modality in Modality:
        codes[words == modality.value] = modality.code
    for name in ("pid", "camid", "number"):
        if arrays[name].dtype.kind not in "iu":
            raise InputError(f"{path}: expected whole numbers in {name}, got {arrays[name].dtype}; store integers")
        arrays[name] = arrays[name].astype(np.int64)
    return FeatureSet(arrays["features"], arrays["pid"], arrays["camid"], codes, arrays["number"]).check(str(path))


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise InputError(f"expected a feature file (.npz), got {path}, which is no file; check the path")
    try:
        # opened here, because numpy leaves the file open when it is no archive
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise InputError(f"{path}: expected an .npz with {', '.join(ARRAYS)}, got one array; use numpy.savez")
            missing = [name for name in ARRAYS if name not in archive.files]
            if missing:
                raise InputError(
                    f"{path}: expected the arrays {', '.join(ARRAYS)}, got {', '.join(archive.files) or 'none'}; "
                    f"add {', '.join(missing)}"
                )
            return {name: archive[name] for name in ARRAYS}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: expected a readable .npz without pickled objects, got {error}; write it again with numpy.savez"
        ) from error


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


def _check_values(features: FeatureSet, where: str) -> None:
    if features.features.dtype.kind != "f":
        raise InputError(
            f"{where}: expected floating-point features, got {features.features.dtype}; store float32 or float64"
        )
    bad = np.flatnonzero(~np.isfinite(features.features).all(axis=1))
    if bad.size:
        row = int(bad[0])
        raise InputError(
            f"{where}: expected finite features, got NaN or infinity in {bad.size} rows, first row {row} "
            f"(pid {features.pid[row]}, camera {features.camid[row]}); check the model and extract again"
        )


def _check_modalities(features: FeatureSet, where: str) -> None:
    for modality in Modality:
        if not np.any(features.modality == modality.code):
            raise InputError(
                f"{where}: expected visible and infrared images, got no {modality.value} one; "
                f"add the {modality.value} images to the file"
            )
    facts = np.stack([features.modality, features.pid, features.camid, features.number], axis=1).astype(np.int64)
    _, first, count = np.unique(facts, axis=0, return_index=True, return_counts=True)
    if np.any(count > 1):
        row = int(first[count > 1].min())
        raise InputError(
            f"{where}: expected each image once, got pid {features.pid[row]}, camera {features.camid[row]}, number "
            f"{features.number[row]} more than once (first row {row}); number the images of a folder 1, 2, 3, ..."
        )
