"""The plain feature file (`F.npz`): features with the facts about each image, and what makes one unusable."""

import mmap
import os
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tacaf.files import whole_file
from tacaf.vocabulary import InputError, Modality

ARRAYS = ("features", "pid", "camid", "modality", "number")
LARGE_BYTES = 1 << 30  # features beyond this stay in their file and are read as they are needed
_CHECKED_ROWS = 1 << 14
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
        _check_images(self, where)
        return self

    def save(self, path: Path) -> None:
        """Write `F.npz`, whole or not at all."""
        words = np.asarray(_MODALITY_WORDS)[self.modality.astype(np.int64)]
        with whole_file(path) as file:
            np.savez(file, features=self.features, pid=self.pid, camid=self.camid, modality=words, number=self.number)


def load_features(path: Path) -> FeatureSet:
    """Read and check an `F.npz`. Nothing is unpickled: a file with object arrays is refused.

    Features of more than LARGE_BYTES that `numpy.savez` wrote, uncompressed, are a numpy.memmap; `read_rows` reads it.
    Raises InputError for a file that is missing, not an npz, without one of the five arrays, empty, of mismatched
    lengths, with NaN or infinity, or with an unknown modality word.
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
            mapped = _mapped(path, "features")
            whole = {name: archive[name] for name in ARRAYS if name != "features" or mapped is None}
            return whole if mapped is None else {**whole, "features": mapped}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: expected a readable .npz without pickled objects, got {error}; write it again with numpy.savez"
        ) from error


def _mapped(path: Path, name: str) -> np.ndarray | None:
    """A large array of an .npz as a map of its bytes in the file; None if it is small, compressed, or holds objects."""
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{name}.npy")
    if member.compress_type != zipfile.ZIP_STORED or member.file_size <= LARGE_BYTES:
        return None
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)  # the two lengths that end a zip entry's header of 30 bytes
        file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, columns_first, dtype = read(file)
        begin = file.tell()
    if dtype.hasobject:
        return None
    return np.memmap(path, dtype, "r", begin, shape, "F" if columns_first else "C")


def read_rows(stored_ND: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A copy of these rows. Of a memory map the pages read are let go again, or they would count as resident memory."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and np.all(np.diff(rows) == 1):
        found = np.array(stored_ND[rows[0] : rows[-1] + 1], subok=False)
    else:
        ascending = np.argsort(rows, kind="stable")  # the disk is read forwards
        found = np.empty((len(rows), *stored_ND.shape[1:]), stored_ND.dtype)
        found[ascending] = stored_ND[rows[ascending]]
    pages = getattr(stored_ND, "_mmap", None)
    if pages is not None:
        pages.madvise(mmap.MADV_DONTNEED)
    return found


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
    parts = [np.arange(a, min(a + _CHECKED_ROWS, len(features))) for a in range(0, len(features), _CHECKED_ROWS)]
    bad = np.concatenate([rows[~np.isfinite(read_rows(features.features, rows)).all(axis=1)] for rows in parts])
    if bad.size:
        row = int(bad[0])
        raise InputError(
            f"{where}: expected finite features, got NaN or infinity in {bad.size} rows, first row {row} "
            f"(pid {features.pid[row]}, camera {features.camid[row]}); check the model and extract again"
        )


def _check_images(features: FeatureSet, where: str) -> None:
    facts = (features.modality, features.pid, features.camid, features.number)
    order = np.lexsort(facts)  # the first rows of equals first
    again = np.all([fact[order[1:]] == fact[order[:-1]] for fact in facts], axis=0)
    if again.any():
        row = int(order[:-1][again].min())
        raise InputError(
            f"{where}: expected each image once, got pid {features.pid[row]}, camera {features.camid[row]}, number "
            f"{features.number[row]} more than once (first row {row}); number the images of a folder 1, 2, 3, ..."
        )
