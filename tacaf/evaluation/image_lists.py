"""Lists of query or gallery images: text files with one sample key per line, as in the shards."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tacaf.evaluation.circumstances import Facts
from tacaf.evaluation.features import FeatureSet
from tacaf.files import read_bytes, shown
from tacaf.vocabulary import InputError, Modality, sample_key

MOST_BYTES = 2**30
_KEY = re.compile(rf"({'|'.join(Modality)})_(-?[0-9]{{1,18}})_c(-?[0-9]{{1,18}})_([0-9]{{1,18}})")


@dataclass(frozen=True, eq=False)
class ImageList:
    """The images of a list file. `facts` int64 [n, 4]: modality code, pid, camid, number; `sha256`: the file's hash."""

    path: Path
    sha256: str
    facts: np.ndarray

    @classmethod
    def read(cls, path: Path) -> "ImageList":
        """Read a list. Skips empty lines and lines that begin with #; ignores leading zeros of numbers.

        Raises InputError for a line that is not a key or that repeats one.
        """
        try:
            data = read_bytes(path, MOST_BYTES)
            lines = data.decode().splitlines()
        except (InputError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the list of images {shown(path)}: {error}") from None
        line_of: dict[tuple[int, ...], int] = {}
        for number, line in enumerate(map(str.strip, lines), 1):
            if not line or line.startswith("#"):
                continue
            fits = _KEY.fullmatch(line)
            if fits is None:
                raise InputError(
                    f"{shown(path)}, line {number}: expected a key such as {sample_key('visible', 12, 3, 4)}, got"
                    f" {shown(line)[:60]!r}; correct the line"
                )
            facts = (Modality(fits[1]).code, *(int(word) for word in fits.groups()[1:]))
            first = line_of.setdefault(facts, number)
            if first != number:
                raise InputError(
                    f"{shown(path)}, line {number}: expected each image once, got {line} as in line {first}"
                )
        if not line_of:
            raise InputError(f"{shown(path)}: expected at least one key, got none; write one per line")
        return cls(path, hashlib.sha256(data).hexdigest(), np.array(list(line_of), np.int64))

    @property
    def facts_for_results(self) -> Facts:
        """What a result records about the list."""
        return {"file": self.path.name, "sha256": self.sha256, "images": len(self.facts)}

    def rows(self, features: FeatureSet, modality: Modality | None) -> np.ndarray:
        """The rows of these images, in ascending order.

        Raises InputError for an image without features, or of another modality than `modality` if that is given.
        """
        columns = (features.modality, features.pid, features.camid, features.number)
        row_of = {facts: row for row, facts in enumerate(zip(*(c.tolist() for c in columns), strict=True))}
        rows = [row_of.get(tuple(facts), -1) for facts in self.facts.tolist()]
        for row, (code, *numbers) in zip(rows, self.facts.tolist(), strict=True):
            own = Modality.of_code(code)
            if row < 0:
                raise InputError(
                    f"{shown(self.path)}: expected images that have features, got {sample_key(own, *numbers)}, which "
                    "has none; remove it from the list, or extract its features"
                )
            if modality not in (None, own):
                raise InputError(
                    f"{shown(self.path)}: expected {modality} images for this direction, got"
                    f" {sample_key(own, *numbers)}; remove it, or leave the direction out and give both lists"
                )
        return np.sort(np.array(rows, np.int64))
