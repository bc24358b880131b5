"""The format of a shard set's index.json, shared by all code that writes, verifies or reads a set. Source: ours."""

import json
import os
import stat
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from tacaf.documents import NO_SEAL, Count, Document, Sha256, check_seal, parse, seal
from tacaf.files import read_bytes, reason_of, shown
from tacaf.images import GreyScale
from tacaf.vocabulary import COLUMNS, INDEX_FILE, InputError, Modality

MOST_INDEX_BYTES = 2**28  # millions of identities by name
MISSING = "is missing"
CURE = "copy the set again, or pack it again"

Pid = Annotated[int, Field(ge=0, lt=2**62)]
Camid = Annotated[int, Field(ge=0, lt=2**15)]
SplitName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Text = Annotated[str, Field(max_length=4096)]


class Tally(Document):
    """How many images and people of one modality a split has."""

    images: Count
    pids: Count


class ShardFacts(Document):
    """One tar. `name` is a plain file name, so that an index can never point outside its folder."""

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

    path: Annotated[str, Field(max_length=20_000)] = Field(
        description="relative to the raw root; bytes that are not UTF-8 as \\xNN, a backslash as two"
    )
    reason: Text


class Removed(Document):
    """The people who were removed from the set after it was packed."""

    pids: list[Pid] = Field(description="ascending")
    images: Count


class IndexFile(Document):
    """The content of index.json. It has the hashes of all other files of the set, and its own hash (`seal`)."""

    format: Literal["tacaf-shards"] = "tacaf-shards"
    format_version: Literal[2] = 2
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,200}$", description="the data set; its shards' names begin with it")
    images: Annotated[int, Field(ge=1, lt=2**40)]
    counts: dict[SplitName, dict[Modality, Tally]] = Field(description="split -> modality -> how much it contains")
    splits: dict[SplitName, list[Pid]] = Field(description="named pid lists, each ascending")
    pid_names: dict[Pid, Text] | None = Field(description="pid -> the data set's own name, if that is not a number")
    locations: dict[Camid, Camid] | None = Field(description="camid -> location; None if no two cameras share one")
    shards: list[ShardFacts] = Field(min_length=1)
    columns: dict[str, ColumnFacts]
    left_out: list[LeftOut]
    left_out_count: Count = Field(description="images left out; one entry of left_out may represent many")
    source: Text = Field(description="free text: what was packed")
    scales: dict[Modality, GreyScale] = Field(
        description="modality -> how its grey images of more than 8 bits become 8; no entry if it has no such images"
    )
    removed: Removed | None = Field(None, description="omitted if nobody was removed")
    seal: Sha256 = Field(NO_SEAL, description="sha256 of this file with 64 zeros in place of the seal")

    @model_validator(mode="after")
    def _agrees(self) -> "IndexFile":
        """The checks that need nothing but the index."""
        names = [shard.name for shard in self.shards]
        if len(set(names)) != len(names):
            raise ValueError("shards: expected every shard once, got one twice")
        if (summed := sum(shard.images for shard in self.shards)) != self.images:
            raise ValueError(f"images: is {self.images}, but the shards add up to {summed}")
        if {name: facts.dtype for name, facts in self.columns.items()} != COLUMNS:
            raise ValueError(f"columns: expected {COLUMNS}, got { ({n: f.dtype for n, f in self.columns.items()}) }")
        removed = self.removed.pids if self.removed else []
        for name, members in [
            *((f"splits.{split}", pids) for split, pids in self.splits.items()),
            ("removed", removed),
        ]:
            if (np.diff(np.array(members, dtype=np.int64)) <= 0).any():
                raise ValueError(f"{name}: expected ascending pids, each once")
        if named := set(removed).intersection(self.pid_names or ()):
            raise ValueError(f"pid_names: names pid {min(named)}, which is stated as removed")
        if self.counts.keys() != self.splits.keys():
            raise ValueError("counts: expected the same names as in splits")
        return self

    def to_json(self) -> str:
        """The sealed JSON, one line per key: compact, and readable with any pager."""
        values = self.model_dump(mode="json", exclude=None if self.removed else {"removed"})
        values["seal"] = NO_SEAL
        lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
        return seal("{\n" + ",\n".join(lines) + "\n}\n")


def read_index(folder: Path) -> IndexFile:
    """The index of the set in `folder`. Raises InputError if it is missing or invalid."""
    path = folder / INDEX_FILE
    problem = file_problem(path)
    if problem == MISSING:
        raise InputError(f"there is no shard set in {shown(folder)}: it has no {INDEX_FILE}; pack one there first")
    if problem:
        raise InputError(f"{shown(path)} {problem}")
    return parse_index(read_bytes(path, MOST_INDEX_BYTES), shown(path))


def parse_index(data: bytes, where: str) -> IndexFile:
    """The index in these bytes, with its seal checked. Raises InputError, which names it as `where`, if it is wrong."""
    index = parse(data, IndexFile, where, MOST_INDEX_BYTES, CURE)
    check_seal(data, where, CURE)
    return index


def file_problem(path: Path, size: int | None = None) -> str | None:
    """Why `path` is not a plain file (of `size` bytes), as the end of a sentence, or None.

    Links are refused: they may lead out of the set, and copying the set without their targets would break it.
    """
    try:
        facts = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    except (OSError, ValueError) as error:
        return f"cannot be read: {reason_of(error)}"
    if stat.S_ISLNK(facts.st_mode):
        return "is a link, which may lead out of the set; put the file itself in its place"
    if not stat.S_ISREG(facts.st_mode):
        return "is not a file"
    if size is not None and facts.st_size != size:
        return f"is truncated or another file: expected {size} bytes, got {facts.st_size}; copy it again"
    return None
