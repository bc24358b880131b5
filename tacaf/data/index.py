"""The index of a shard set: memory-mapped columns, one row an image, and what training and scoring select from them."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tacaf.vocabulary import (
    COLUMN_FOLDER,
    COLUMNS,
    INDEX_FILE,
    SHARD_FORMAT,
    SHARD_FORMAT_VERSION,
    InputError,
    Modality,
    sample_key,
)


@dataclass(frozen=True)
class ShardIndex:
    """A shard set as arrays. Rows are sorted by (pid, modality, camid, number); every column has one entry a row.

    `sha256` is the hash of index.json, which holds the hashes of everything else: the identity of the set.
    """

    folder: Path
    name: str
    sha256: str
    splits: dict[str, list[int]]
    locations: dict[int, int] | None
    shards: list[Path]
    columns: dict[str, np.ndarray] = field(repr=False)

    @classmethod
    def open(cls, folder: Path, check_hashes: bool = False) -> "ShardIndex":
        """Open and check a set; `check_hashes` also re-hashes the columns. InputError says what is missing or wrong."""
        folder = Path(folder)
        path = folder / INDEX_FILE
        try:
            text = path.read_bytes()
            facts = json.loads(text)
            if facts["format"] != SHARD_FORMAT:
                raise KeyError("format")
        except FileNotFoundError:
            raise InputError(
                f"expected a shard set in {folder}, found no {INDEX_FILE}; make one with python -m shards pack, or mend"
                " data.shards"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: expected the index of a shard set, got a damaged or other file ({error}); pack the set again"
            ) from None
        if facts["format_version"] != SHARD_FORMAT_VERSION:
            raise InputError(
                f"{path}: expected format version {SHARD_FORMAT_VERSION}, got {facts['format_version']}; pack the set"
                " again with this version"
            )
        columns = {name: _column(folder, name, facts, check_hashes) for name in COLUMNS}
        _check_shards(folder, facts)
        locations = (
            {int(camid): place for camid, place in facts["locations"].items()} if facts.get("locations") else None
        )
        shards = [folder / shard["name"] for shard in facts["shards"]]
        return cls(folder, facts["name"], hashlib.sha256(text).hexdigest(), facts["splits"], locations, shards, columns)

    def __len__(self) -> int:
        return len(self.columns["pid"])

    def key(self, row: int) -> str:
        """The sample's key in its tar, for messages."""
        modality = Modality.VISIBLE if self.columns["modality"][row] == Modality.VISIBLE.code else Modality.INFRARED
        return sample_key(modality, *(int(self.columns[name][row]) for name in ("pid", "camid", "number")))

    def pids_of(self, split: str) -> np.ndarray:
        """The pids of a named list, ascending int64; `trainval` is train and val (the literature's training set)."""
        if split == "trainval" and "trainval" not in self.splits:
            return np.union1d(self.pids_of("train"), self.pids_of("val"))
        if split not in self.splits:
            raise InputError(
                f"expected a split among {', '.join(sorted(self.splits))}, got {split!r}; mend data.split or --split"
            )
        return np.unique(np.asarray(self.splits[split], dtype=np.int64))

    def rows_of(self, pids: np.ndarray) -> np.ndarray:
        """All rows of these pids, ascending int64."""
        column = self.columns["pid"]
        starts, stops = np.searchsorted(column, pids, "left"), np.searchsorted(column, pids, "right")
        return _ranges(starts, stops)


@dataclass(frozen=True)
class TrainingSet:
    """The identities of a split that have both modalities, as label -> rows. Modality m of label l has the rows
    `start[m, l] <= row < stop[m, l]` of the index, because one identity's images of a modality lie together.
    """

    pid_I: np.ndarray  # int64, ascending: label -> pid
    start_2I: np.ndarray  # int64
    stop_2I: np.ndarray  # int64
    left_out: tuple[int, ...]  # pids lacking a modality

    @property
    def identities(self) -> int:
        return len(self.pid_I)

    @property
    def images(self) -> tuple[int, int]:
        """Images of the visible and of the infrared modality."""
        visible, infrared = (self.stop_2I - self.start_2I).sum(axis=1)
        return int(visible), int(infrared)

    def short_of(self, images_per_identity: int) -> int:
        """How many (identity, modality) have fewer images than a batch takes, so that some repeat in it."""
        return int((self.stop_2I - self.start_2I < images_per_identity).sum())

    def describe(self) -> str:
        visible, infrared = self.images
        text = f"{self.identities} identities, {visible} visible and {infrared} infrared images"
        return text + (f"; {len(self.left_out)} identities left out, lacking a modality" if self.left_out else "")


def select_training(index: ShardIndex, split: str) -> TrainingSet:
    """The training set of a split. InputError if nothing is left or a modality is missing altogether."""
    pids = index.pids_of(split)
    # Sorted by (pid, modality): one combined key finds every range at once.
    key = index.columns["pid"] * 2 + index.columns["modality"]
    wanted = pids[None, :] * 2 + np.arange(2)[:, None]
    start, stop = np.searchsorted(key, wanted, "left"), np.searchsorted(key, wanted, "right")
    has = stop > start
    for modality in Modality:
        if not has[modality.code].any():
            raise InputError(
                f"expected {modality} images in split {split!r} of {index.folder}, found none among {len(pids)}"
                " identities; training needs both modalities: pack the set with both"
            )
    both = has.all(axis=0)
    if not both.any():
        raise InputError(
            f"expected identities with both modalities in split {split!r} of {index.folder}, found none; check the"
            " packing"
        )
    return TrainingSet(pids[both], start[:, both], stop[:, both], tuple(pids[~both].tolist()))


def _ranges(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """The numbers of all half-open ranges, one after another."""
    lengths = stops - starts
    if not lengths.sum():
        return np.empty(0, dtype=np.int64)
    offsets = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
    return offsets + np.arange(lengths.sum())


def _column(folder: Path, name: str, facts: dict, check_hash: bool) -> np.ndarray:
    path = folder / COLUMN_FOLDER / f"{name}.npy"
    try:
        column = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"expected the column {path}, got: {error}; the set is damaged, pack it again") from None
    if column.shape != (facts["images"],) or column.dtype != COLUMNS[name]:
        raise InputError(
            f"{path}: expected {facts['images']} entries of {COLUMNS[name]}, got shape {column.shape} of"
            f" {column.dtype}; the set is damaged, pack it again"
        )
    if check_hash and hashlib.sha256(path.read_bytes()).hexdigest() != facts["columns"][name]["sha256"]:
        raise InputError(f"{path}: its sha256 is not the one in {INDEX_FILE}; the set is damaged, pack it again")
    return column


def _check_shards(folder: Path, facts: dict) -> None:
    for shard in facts["shards"]:
        path = folder / shard["name"]
        if not path.is_file():
            raise InputError(f"expected the shard {path}, found none; copy the set again or pack it again")
        if path.stat().st_size != shard["bytes"]:
            raise InputError(
                f"{path}: expected {shard['bytes']} bytes, got {path.stat().st_size}; the shard is cut or of another"
                " set, copy it again"
            )
