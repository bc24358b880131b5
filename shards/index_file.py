"""index.json of a shard set and the columns beside it: their form, in one place for writing, verifying, inspecting."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field, ValidationError

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

NO_SPLIT = 255  # the split column of an image that belongs to no single split (RegDB has ten)
Count = Field(ge=0, strict=True)
Sha256 = Field(pattern=r"^[0-9a-f]{64}$")


class Tally(BaseModel, extra="forbid", frozen=True):
    """How much of one modality a split holds."""

    images: int = Count
    pids: int = Count


class ShardFacts(BaseModel, extra="forbid", frozen=True):
    """One tar; `name` is a plain file name, so that an index can never point outside its folder."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+-[0-9]{6,}\.tar$")
    bytes: int = Count
    sha256: str = Sha256
    images: int = Count


class ColumnFacts(BaseModel, extra="forbid", frozen=True):
    """One column file, `columns/<name>.npy`."""

    dtype: str
    sha256: str = Sha256


class LeftOut(BaseModel, extra="forbid", frozen=True):
    """A file or folder of the raw set that was not packed."""

    path: str = Field(description="relative to the raw root")
    reason: str


class Removed(BaseModel, extra="forbid", frozen=True):
    """Who was taken out of the set after it was packed."""

    pids: list[int] = Field(description="ascending")
    images: int = Count


class IndexFile(BaseModel, extra="forbid", frozen=True):
    """The content of index.json (house §4). Everything else of a set is hashed by it."""

    format: Literal["tacaf-shards"] = "tacaf-shards"
    format_version: Literal[1] = 1
    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$", description="the data set, and the beginning of its shards' names")
    images: int = Count
    counts: dict[str, dict[Modality, Tally]] = Field(description="split -> modality -> what it holds")
    splits: dict[str, list[int]] = Field(description="named pid lists, each ascending")
    pid_names: dict[int, str] | None = Field(description="pid -> the data set's own name, where that is no number")
    locations: dict[int, int] | None = Field(description="camid -> location; None where every camera stands alone")
    shards: list[ShardFacts]
    columns: dict[str, ColumnFacts]
    left_out: list[LeftOut]
    left_out_count: int = Field(ge=0, description="images left out; one entry of left_out may stand for many")
    source: str = Field(description="free text: what was packed")
    removed: Removed | None = Field(None, description="not in the file where nobody was")

    def to_json(self) -> str:
        """One line a key: small, and readable with any pager."""
        values = self.model_dump(mode="json", exclude=None if self.removed else {"removed"})
        lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
        return "{\n" + ",\n".join(lines) + "\n}\n"


def read_index(folder: Path) -> IndexFile:
    """The index of the set in `folder`. InputError where there is none, or one that does not have the form above."""
    path = folder / INDEX_FILE
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"expected a shard set in {folder}, found no {INDEX_FILE}; pack one there first") from None
    except OSError as error:
        raise InputError(f"expected to read {path}, got: {error.strerror}; mend that and try again") from None
    try:
        return IndexFile.model_validate_json(text)
    except ValidationError as error:
        _check_version(path, text)
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(
            f"{path}: expected the index of a shard set, got at {place}: {first['msg']}; copy or pack the set again"
        ) from None


def _check_version(path: Path, text: bytes) -> None:
    """InputError for an index of our format in another version, whatever else it may hold."""
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        return
    if isinstance(facts, dict) and facts.get("format") == SHARD_FORMAT:
        version = facts.get("format_version")
        if isinstance(version, int) and version != SHARD_FORMAT_VERSION:
            raise InputError(
                f"{path}: expected format_version {SHARD_FORMAT_VERSION}, got {version}; read the set with the TACAF "
                "that wrote it, or pack it again"
            )


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
