"""A shard set's index.json and the columns beside it: their form, for whoever writes, verifies, trains on or shows one.

Source: ours.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from tacaf.documents import Count, Document, Sha256, check_seal, parse, seal
from tacaf.files import read_bytes
from tacaf.images import GreyScale
from tacaf.vocabulary import (
    COLUMN_FOLDER,
    COLUMNS,
    INDEX_FILE,
    SHARD_FORMAT_VERSION,
    InputError,
    Modality,
    sample_key,
)

NO_SPLIT = 255  # the split column of an image that belongs to no single split (RegDB has ten)
MOST_INDEX_BYTES = 2**30  # millions of identities by name
CURE = "copy the set again, or pack it again"

Pid = Annotated[int, Field(ge=0, lt=2**62)]
Camid = Annotated[int, Field(ge=0, lt=2**15)]
SplitName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Text = Annotated[str, Field(max_length=4096)]


class Tally(Document):
    """How much of one modality a split holds."""

    images: Count
    pids: Count


class ShardFacts(Document):
    """One tar; `name` is a plain file name, so that an index can never point outside its folder."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,200}-[0-9]{6,12}\.tar$")
    bytes: Count
    sha256: Sha256
    images: Annotated[int, Field(ge=1, lt=2**53)]


class ColumnFacts(Document):
    """One column file, `columns/<name>.npy`."""

    dtype: str
    sha256: Sha256


class LeftOut(Document):
    """A file or folder of the raw set that was not packed."""

    path: Text = Field(description="relative to the raw root")
    reason: Text


class Removed(Document):
    """Who was taken out of the set after it was packed."""

    pids: list[Pid] = Field(description="ascending")
    images: Count


class IndexFile(Document):
    """The content of index.json. Everything else of a set is hashed by it, and it carries its own hash (`seal`).

    Sets of version 1 have no seal and no scales; they are read, and never written.
    """

    format: Literal["tacaf-shards"] = "tacaf-shards"
    format_version: Literal[1, 2] = 2
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,200}$", description="the data set; its shards' names begin with it")
    images: Annotated[int, Field(ge=1, lt=2**40)]
    counts: dict[SplitName, dict[Modality, Tally]] = Field(description="split -> modality -> what it holds")
    splits: dict[SplitName, list[Pid]] = Field(description="named pid lists, each ascending")
    pid_names: dict[Pid, Text] | None = Field(description="pid -> the data set's own name, where that is no number")
    locations: dict[Camid, Camid] | None = Field(description="camid -> location; None where every camera stands alone")
    shards: list[ShardFacts] = Field(min_length=1)
    columns: dict[str, ColumnFacts]
    left_out: list[LeftOut]
    left_out_count: Count = Field(description="images left out; one entry of left_out may stand for many")
    source: Text = Field(description="free text: what was packed")
    scales: dict[Modality, GreyScale] = Field(
        {}, description="modality -> how its grey images of more than 8 bits become 8; none for modalities without such"
    )
    removed: Removed | None = Field(None, description="not in the file where nobody was")
    seal: Sha256 = Field("0" * 64, description="sha256 of this file with 64 zeros in place of the seal")

    @model_validator(mode="after")
    def _agrees(self) -> "IndexFile":
        """The cross-checks that need nothing but the index."""
        names = [shard.name for shard in self.shards]
        if len(set(names)) != len(names):
            raise ValueError("shards: expected every shard once, got one twice")
        if (summed := sum(shard.images for shard in self.shards)) != self.images:
            raise ValueError(f"images: is {self.images}, but the shards add up to {summed}")
        if {name: facts.dtype for name, facts in self.columns.items()} != COLUMNS:
            raise ValueError(f"columns: expected {COLUMNS}, got { ({n: f.dtype for n, f in self.columns.items()}) }")
        for name, members in [*self.splits.items(), ("removed", self.removed.pids if self.removed else [])]:
            if (np.diff(np.array(members, dtype=np.int64)) <= 0).any():
                raise ValueError(f"splits.{name}: expected ascending pids, each once")
        if self.counts.keys() != self.splits.keys():
            raise ValueError("counts: expected the same names as in splits")
        return self

    def to_json(self) -> str:
        """One line a key, sealed: small, and readable with any pager."""
        values = self.model_dump(mode="json", exclude=None if self.removed else {"removed"})
        values |= {"format_version": SHARD_FORMAT_VERSION, "seal": "0" * 64}
        lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
        return seal("{\n" + ",\n".join(lines) + "\n}\n")


def read_index(folder: Path) -> IndexFile:
    """The index of the set in `folder`. InputError where there is none, or one that does not have the form above."""
    path = folder / INDEX_FILE
    if not path.exists():
        raise InputError(f"expected a shard set in {folder}, found no {INDEX_FILE}; pack one there first")
    return parse_index(read_bytes(path, MOST_INDEX_BYTES), str(path))


def parse_index(data: bytes, where: str) -> IndexFile:
    """The index in these bytes, its seal checked. `where` names it in the InputError for whatever is wrong."""
    index = parse(data, IndexFile, where, MOST_INDEX_BYTES, CURE)
    if index.format_version > 1:
        check_seal(data, where, CURE)
    return index


def read_column(folder: Path, name: str, images: int) -> np.ndarray:
    """The memory-mapped column `name`, checked for dtype and length. InputError says what is wrong with it."""
    path = folder / COLUMN_FOLDER / f"{name}.npy"
    try:
        column = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(
            f"{COLUMN_FOLDER}/{name}.npy: expected a column file, found none; copy the set again"
        ) from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{COLUMN_FOLDER}/{name}.npy: expected a column file, got: {error}; copy the set again"
        ) from None
    if not isinstance(column, np.ndarray) or column.shape != (images,) or column.dtype != COLUMNS[name]:
        got = f"{column.shape} of {column.dtype}" if isinstance(column, np.ndarray) else "an archive"
        raise InputError(
            f"{COLUMN_FOLDER}/{name}.npy: expected ({images},) of {COLUMNS[name]}, got {got}; copy the set again"
        )
    return column


def row_key(columns: Mapping[str, np.ndarray], row: int) -> str:
    """The key of the sample that a row stands for."""
    modality = list(Modality)[int(columns["modality"][row])]
    return sample_key(modality, *(int(columns[name][row]) for name in ("pid", "camid", "number")))


def tally(pids: np.ndarray, modalities: np.ndarray, splits: dict[str, list[int]]) -> dict[str, dict[Modality, Tally]]:
    """The `counts` of an index, from the columns pid and modality (one entry an image) and the named pid lists."""
    counts: dict[str, dict[Modality, Tally]] = {}
    for name, members in splits.items():
        inside = np.isin(pids, np.asarray(members, dtype=np.int64))
        counts[name] = {}
        for modality in Modality:
            chosen = pids[inside & (modalities == modality.code)]
            counts[name][modality] = Tally(images=len(chosen), pids=len(np.unique(chosen)))
    return counts
