"""Terms that every package shares: modalities, splits, branches, the parts of a shard set, and InputError."""

import difflib
from collections.abc import Iterable
from enum import IntEnum, StrEnum
from typing import Literal

INDEX_FILE = "index.json"
COLUMN_FOLDER = "columns"
# One memory-mapped array per property of an image. Rows are sorted by (pid, modality, camid, number), so that one
# identity's images are consecutive. `offset` and `size` locate the image inside its tar, in bytes.
COLUMNS = {
    "shard": "int32",
    "offset": "int64",
    "size": "int64",
    "pid": "int64",
    "camid": "int16",
    "modality": "uint8",
    "split": "uint8",
    "number": "int32",
}

# What an embedding contains: the global feature and every node, everything but the global node, only the global
# feature.
Embedding = Literal["full", "global_and_parts", "global_only"]


class InputError(Exception):
    """Something that the user gave cannot be used. The text says what was expected, what was given and what to do.

    Every command prints it as one line and exits with status 2. `shared`: every rank of the run raises the same error,
    so only rank 0 prints it.
    """

    def __init__(self, text: str, shared: bool = False) -> None:
        super().__init__(text)
        self.shared = shared


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """For the end of an error: a question with the most similar of these words. Empty if none is similar."""
    near = difflib.get_close_matches(word, list(words), n=1)
    return f"did you mean {near[0]!r}?" if near else ""


class Modality(StrEnum):
    """What a camera sees. `code` is its number in arrays: visible 0, infrared 1."""

    VISIBLE = "visible"
    INFRARED = "infrared"

    @property
    def code(self) -> int:
        return 0 if self is Modality.VISIBLE else 1

    @classmethod
    def of_code(cls, code: int) -> "Modality":
        """The modality with this `code`, of any integer type. Raises ValueError if there is none."""
        for modality in cls:
            if modality.code == code:
                return modality
        raise ValueError(f"{code} is not the code of a modality")

    @property
    def other(self) -> "Modality":
        return Modality.INFRARED if self is Modality.VISIBLE else Modality.VISIBLE


class Split(StrEnum):
    """The part of a data set that an image belongs to. `code` is its number in arrays; 255 means none."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"

    @property
    def code(self) -> int:
        return {"train": 0, "val": 1, "test": 2}[self.value]


class Branch(IntEnum):
    """The three data branches of a training batch (CAJ): V0, V1 (the same images with channels exchanged), I."""

    VISIBLE = 0
    AUGMENTED = 1
    INFRARED = 2

    @property
    def modality(self) -> Modality:
        return Modality.INFRARED if self is Branch.INFRARED else Modality.VISIBLE


def sample_key(modality: str, pid: int, camid: int, number: int) -> str:
    """The key of a sample inside its tar: no dots, since the first dot starts the extension (WebDataset)."""
    return f"{modality}_{pid:04d}_c{camid}_{number:04d}"
