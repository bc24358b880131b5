"""The stored scores of an ablation's trainings: a JSON Lines file for each benchmark, with a line for each training.

A line is small enough to be published, and sufficient to recreate every table without the run or its features.
"""

import json
from pathlib import Path
from typing import Any, Literal

from launch.study.identity_scores import IdentityRecord
from tacaf.documents import Document, parse
from tacaf.evaluation.results import Result
from tacaf.files import locked, read_bytes, shown, write_whole
from tacaf.run_files import Start

MOST_BYTES = 2**28  # of a benchmark's file; a training takes about 15 kB
Scored = Literal["val", "test"]
_CURE = "remove the line; the training's scores are then written again"


class KeptResult(Result):
    """A result of a training, with its scores by identity."""

    people: IdentityRecord


class KeptTraining(Document):
    """One training of an ablation: its scores, also by identity, and its circumstances."""

    benchmark: str
    row: str
    seed: int
    settings: list[str]
    scores: dict[Scored, KeptResult]
    config: dict[str, Any]  # resolved, without the folders of the run and the shards
    trainings: list[Start]

    def as_json(self) -> dict[str, Any]:
        """The training as plain values. Fields that were missing in a result or a start are not added."""
        return self.model_dump(mode="json", exclude_unset=True)


class KeptScores:
    """The file of one benchmark, which is read once, when it is first needed."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lines: dict[tuple[str, int], KeptTraining] | None = None

    def find(self, row: str, seed: int) -> KeptTraining | None:
        """What is stored about a training, or None. Raises InputError, naming the line, if one cannot be read."""
        if self._lines is None:
            self._lines = _read(self.file)
        return self._lines.get((row, seed))

    def keep(self, training: KeptTraining) -> None:
        """Write a training's line in place of an older one. No other line changes."""
        with locked(self.file.with_name(f".{self.file.name}.lock")):
            lines = _read(self.file)  # again, because another process may have added lines
            lines[training.row, training.seed] = training
            text = "".join(json.dumps(line.as_json(), allow_nan=False) + "\n" for line in lines.values())
            write_whole(self.file, text)
            self._lines = lines


def kept_file(folder: Path, benchmark: str) -> Path:
    return folder / f"ablation_{benchmark}.jsonl"


def _read(file: Path) -> dict[tuple[str, int], KeptTraining]:
    if not file.exists():
        return {}
    trainings: dict[tuple[str, int], KeptTraining] = {}
    for number, line in enumerate(read_bytes(file, MOST_BYTES).splitlines(), 1):
        training = parse(line, KeptTraining, f"{shown(file)}, line {number}", MOST_BYTES, _CURE)
        trainings[training.row, training.seed] = training
    return trainings
