"""What is packed and what is left out: one `Record` an image, one `Omission` a file that has no place in the set."""

from dataclasses import dataclass
from pathlib import Path

from tacaf.vocabulary import Modality, Split, sample_key


@dataclass(frozen=True)
class Record:
    """One image of a raw data set. `number` is its 1-based place in its camera/pid folder, file names ascending;
    `camid` is 0 in a set without cameras; `split` is None where splits are only named pid lists.
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
    """Something of the raw set that is not packed: a file, or a folder with several `images`."""

    path: str
    reason: str
    images: int = 1

    def describe(self) -> str:
        """For a message."""
        return f"{self.path} ({self.reason})"
