"""The index of a shard set: memory-mapped columns with one row per image, and the selection of training sets."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tacaf.data.storage import File, LocalStore, RemoteConfig, Store, open_store
from tacaf.files import reason_of, shown
from tacaf.images import GreyScale
from tacaf.shard_columns import MOST_HEADER_BYTES, hash_problem, map_column, member_of, problems, row_key
from tacaf.shard_set import CURE, MOST_INDEX_BYTES, IndexFile, file_problem, parse_index
from tacaf.vocabulary import COLUMNS, INDEX_FILE, InputError, Modality


@dataclass(frozen=True)
class ShardIndex:
    """A shard set as arrays. Rows are sorted by (pid, modality, camid, number); every column has one entry per row.

    `sha256` is the hash of index.json. It identifies the set, because index.json has the hashes of all other files.
    """

    store: Store
    name: str
    sha256: str
    splits: dict[str, list[int]]
    locations: dict[int, int] | None
    scales: dict[Modality, GreyScale]
    shards: list[File]
    columns: dict[str, np.ndarray] = field(repr=False)

    @classmethod
    def open(cls, location: str | Path, remote: RemoteConfig | None = None) -> "ShardIndex":
        """Open the set in a folder or at an address, and check everything except the content of the shards.

        Raises InputError if something is missing or wrong.
        """
        store = open_store(location, remote)
        path = store.where(INDEX_FILE)
        try:
            text = store.read(INDEX_FILE, MOST_INDEX_BYTES)
        except FileNotFoundError:
            raise InputError(
                f"there is no shard set in {location}: it has no {INDEX_FILE}; make one with python -m shards pack, or"
                " correct the path"
            ) from None
        except OSError as error:
            raise InputError(f"cannot read {path}: {reason_of(error)}") from None
        facts = parse_index(text, path)
        shards = [File(shard.name, shard.bytes, shard.sha256) for shard in facts.shards]
        if isinstance(store, LocalStore):
            _check_shards(store.folder, shards)
        columns = {name: _column(store, name, facts) for name in COLUMNS}
        problem = next(problems(facts, columns), None)
        if problem:
            raise InputError(f"{store.where('')}{problem}; {CURE}")
        sha256 = hashlib.sha256(text).hexdigest()
        return cls(store, facts.name, sha256, facts.splits, facts.locations, facts.scales, shards, columns)

    @property
    def remote(self) -> bool:
        """Whether the shards are fetched from a server."""
        return not isinstance(self.store, LocalStore)

    @property
    def place(self) -> str:
        """The folder or address, for messages."""
        return self.store.where("").rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        """Pickle memory-mapped columns as the names of their files instead of gigabytes of data."""
        return {**self.__dict__, "columns": {name: _Mapped.of(column) for name, column in self.columns.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.columns.update({name: column.array() for name, column in state["columns"].items()})

    def __len__(self) -> int:
        return len(self.columns["pid"])

    def key(self, row: int) -> str:
        """The sample's key in its tar, for messages."""
        return row_key(self.columns, row)

    def pids_of(self, split: str) -> np.ndarray:
        """The pids of a split, ascending int64; `trainval` is train and, if there is one, val.

        That is the training set of the literature: papers on SYSU-MM01 train on both, and the other sets have no val.
        """
        if split == "trainval" and "trainval" not in self.splits and "train" in self.splits:
            parts = [self.pids_of(name) for name in ("train", "val") if name in self.splits]
            return np.unique(np.concatenate(parts))
        if split not in self.splits:
            raise InputError(
                f"expected a split among {', '.join(sorted(self.splits))}, got {split!r}; correct data.split or --split"
            )
        return np.unique(np.asarray(self.splits[split], dtype=np.int64))

    def rows_of(self, pids: np.ndarray) -> np.ndarray:
        """All rows of these pids, ascending int64."""
        column = self.columns["pid"]
        starts, stops = np.searchsorted(column, pids, "left"), np.searchsorted(column, pids, "right")
        return _ranges(starts, stops)


@dataclass(frozen=True)
class TrainingSet:
    """The identities of a split that have both modalities, and the rows of their images.

    Modality m of label l has the rows `start[m, l] <= row < stop[m, l]` of the index, because the images of one
    identity and modality are consecutive.
    """

    pid_I: np.ndarray  # int64, ascending: label -> pid
    start_2I: np.ndarray  # int64
    stop_2I: np.ndarray  # int64
    left_out: tuple[int, ...]  # pids without images of one modality
    camid_R: np.ndarray = field(repr=False)  # of every row of the index
    shard_I: np.ndarray = field(repr=False)  # the shard of each identity; an identity is never split

    @property
    def identities(self) -> int:
        return len(self.pid_I)

    @property
    def images(self) -> tuple[int, int]:
        """How many visible and how many infrared images there are."""
        visible, infrared = (self.stop_2I - self.start_2I).sum(axis=1)
        return int(visible), int(infrared)

    def shard_bounds(self) -> np.ndarray:
        """int64 [X + 1]. The n-th of the X shards with identities has the labels `bounds[n] <= l < bounds[n + 1]`."""
        return np.append(np.flatnonzero(np.diff(self.shard_I, prepend=-1)), self.identities)

    def range_of(self, row: int) -> tuple[int, int]:
        """(start, stop) of the rows of the same identity and modality as `row`."""
        code, label = (int(place[0]) for place in np.nonzero((self.start_2I <= row) & (row < self.stop_2I)))
        return int(self.start_2I[code, label]), int(self.stop_2I[code, label])

    def describe(self, images_per_identity: int) -> str:
        """The size of the set and any peculiarities. `images_per_identity`: images per modality in a batch."""
        visible, infrared = self.images
        text = f"{self.identities} identities, {visible} visible and {infrared} infrared images"
        if self.left_out:
            text += f"; {len(self.left_out)} identities left out, because they lack a modality"
        few = (self.stop_2I - self.start_2I < images_per_identity).any(axis=0).sum()
        if few:
            text += f"; {few} identities have fewer than {images_per_identity} images of a modality, so images repeat"
        return text


def select_training(index: ShardIndex, split: str) -> TrainingSet:
    """The training set of a split. Raises InputError if no identity has both modalities."""
    pids = index.pids_of(split)
    # Rows are sorted by (pid, modality), so one combined key finds every range at once.
    key = index.columns["pid"] * 2 + index.columns["modality"]
    key_2I = pids[None, :] * 2 + np.arange(2)[:, None]
    start, stop = np.searchsorted(key, key_2I, "left"), np.searchsorted(key, key_2I, "right")
    has = stop > start
    for modality in Modality:
        if not has[modality.code].any():
            raise InputError(
                f"expected {modality} images in split {split!r} of {index.place}, found none among {len(pids)}"
                " identities; training needs both modalities: pack the set with both"
            )
    both = has.all(axis=0)
    if not both.any():
        raise InputError(
            f"expected identities with both modalities in split {split!r} of {index.place}, found none; check the"
            " packing"
        )
    start, stop = start[:, both], stop[:, both]
    shard_I = np.asarray(index.columns["shard"][start[0]])
    return TrainingSet(pids[both], start, stop, tuple(pids[~both].tolist()), index.columns["camid"], shard_I)


def _ranges(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """The numbers of all half-open ranges, concatenated."""
    lengths = stops - starts
    if not lengths.sum():
        return np.empty(0, dtype=np.int64)
    offsets = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
    return offsets + np.arange(lengths.sum())


class _Mapped(NamedTuple):
    """A pickled column: the file that it is mapped from and the position in it, or the array itself."""

    content: np.ndarray | str
    dtype: str = ""
    offset: int = 0
    rows: int = 0

    @classmethod
    def of(cls, column: np.ndarray) -> "_Mapped":
        if isinstance(column, np.memmap) and column.filename:
            return cls(str(column.filename), column.dtype.str, column.offset, len(column))
        return cls(np.asarray(column))

    def array(self) -> np.ndarray:
        if isinstance(self.content, str):
            return np.memmap(self.content, self.dtype, "r", self.offset, (self.rows,))
        return self.content


def _column(store: Store, name: str, facts: IndexFile) -> np.ndarray:
    member = member_of(name)
    most = MOST_HEADER_BYTES + facts.images * np.dtype(COLUMNS[name]).itemsize
    file = store.open(File(member, most, facts.columns[name].sha256))
    try:
        column = map_column(file, name, facts, store.where(member))
        problem = hash_problem(Path(file.name), name, facts)
        if problem:
            raise InputError(f"{store.where(member)}: {problem}")
    except BaseException as error:
        file.close()
        if isinstance(error, OSError):
            raise InputError(f"cannot read the column {store.where(member)}: {reason_of(error)}") from None
        raise
    store.keep(file)
    return column


def _check_shards(folder: Path, shards: list[File]) -> None:
    for shard in shards:
        problem = file_problem(folder / shard.name, shard.size)
        if problem:
            raise InputError(f"the shard {shown(folder / shard.name)} {problem}; {CURE}")
