"""What is packed and what is left out: a `Record` for each image, an `Omission` for each file that is not packed."""

from dataclasses import dataclass
from pathlib import Path

from tacaf.vocabulary import Modality, Split, sample_key


@dataclass(frozen=True)
class Record:
    """One image of a raw data set.

    `number` is its 1-based position in its camera and pid folder, in the order of the file names. `camid` is 0 in a set
    without cameras. `split` is None if the set's splits are only named pid lists.
    """

    path: Path
    pid: int
    camid: int
    modality: Modality
    split: Split | None
    number: int

    @property
    def key(self) -> str:
        return sample_key(self.modality, self.pid, self.camid, self.number)


@dataclass(frozen=True)
class Omission:
    """A file of the raw set that is not packed, or a folder with a number of `images`."""

    path: str
    reason: str
    images: int = 1

    def describe(self) -> str:
        """The path and the reason, for a message."""
        return f"{self.path} ({self.reason})"
