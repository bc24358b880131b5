"""What the ablation keeps of a training: a result file with scores by identity, enough to make every table anew.

It is small enough to be published; with it, neither the run nor its features are needed any more.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from launch.config import Config
from launch.trainings import SCRIPT, Training, refuse_other_values
from shards.benchmarks import BENCHMARKS
from tacaf.checkpoint import write_whole
from tacaf.evaluation.ablation import People, score_people
from tacaf.evaluation.features import load_features
from tacaf.vocabulary import InputError

Scored = Literal["val", "test"]
_WHERE = ("run", "data.shards")  # of a configuration: where things lie, which is another place for every user


class Cell(NamedTuple):
    """One training of the ablation's tables, and the file its scores are kept in."""

    benchmark: str
    row: str
    seed: int
    training: Training
    file: Path

    def check(self) -> None:
        """InputError if the run or the result file that is there was made with other values."""
        self.training.refuse_other_settings()
        if self.file.exists():
            refuse_other_values(self.file, self._stored_config(self._stored()), self.training.config(), _WHERE)

    def people(self, split: Scored) -> People | None:
        """The kept scores; None where there are none yet."""
        found = self._stored()["scores"].get(split) if self.file.exists() else None
        return People.of_lists(found["people"]) if found else None

    def collect(self, split: Scored) -> None:
        """Write the scores of the finished training; the test identities are embedded here, the others were there.

        Scores of both kinds in a file are of one and the same model.
        """
        scores = {"val": self._result("val", self.training.folder / "results" / "features.npz")}
        if split == "test":
            scores["test"] = self._test()
        elif self.file.exists() and self._stored()["scores"].get("val") == scores["val"]:
            scores = self._stored()["scores"]
        config = self.training.config()
        content = {
            "benchmark": self.benchmark,
            "row": self.row,
            "seed": self.seed,
            "settings": list(self.training.settings_beside(_WHERE)),
            "scores": scores,
            "config": config.model_dump(mode="json", exclude={"run": True, "data": {"shards"}}),
            "trainings": json.loads((self.training.folder / "environment.json").read_text()),
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.file, _compact(content))

    def _test(self) -> dict[str, Any]:
        features, result = self.training.folder / "test.npz", self.training.folder / "test.json"
        if not (features.exists() and result.exists()):
            asked = self.training.config().evaluation.asked()[0]
            words = ["--run", self.training.folder, "--shards", self.training.config().data.shards, "--split", "test"]
            words += ["--protocol", "sysu_mm01", "--mode", asked.mode, "--shots", asked.shots]
            words += ["--features", features, "--json", result]
            command = [sys.executable, str(SCRIPT.with_name("evaluate.py")), *map(str, words)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise InputError(
                    f"{self.training.folder}: expected test scores, got: {done.stderr.strip()[-300:]}; mend that and"
                    " give the same command again"
                )
        return self._result("test", features, result)

    def _result(self, split: Scored, features: Path, path: Path | None = None) -> dict[str, Any]:
        """The score file of that split, as the protocol's program wrote it, and the same scores by identity."""
        evaluation = self.training.config().evaluation
        asked = evaluation.asked()[0]
        paths = [path] if path else sorted((self.training.folder / "results").glob("*.json"))
        results = (json.loads(one.read_text()) for one in paths)
        wanted = (split, asked.mode, asked.shots)
        result = next(one for one in results if (one["split"], one["mode"], one["shots"]) == wanted)
        people = score_people(load_features(features), evaluation.setting(asked), evaluation.metric)
        return {**result, "people": people.as_lists()}

    def _stored(self) -> dict[str, Any]:
        try:
            content = json.loads(self.file.read_text())
            if not isinstance(content["scores"], dict):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{self.file}: expected the scores of a training, got something else; remove it, and the training's"
                " scores are written again"
            ) from None
        return content

    def _stored_config(self, content: dict[str, Any]) -> Config:
        """With today's defaults for keys that are newer than the file."""
        try:
            values = {**content["config"], "run": self.training.folder}
            return Config.model_validate({**values, "data": {**values["data"], "shards": "-"}})
        except (KeyError, TypeError, ValidationError):
            raise InputError(
                f"{self.file}: expected a configuration of this release, got one with other keys; take the release that"
                " made it, or remove the file"
            ) from None


def result_file(folder: Path, benchmark: str, row: str, seed: int) -> Path:
    return folder / "ablation" / f"{BENCHMARKS[benchmark].name}-{row}-seed{seed}.json"


def _compact(content: dict[str, Any]) -> str:
    """JSON that is short and still shows a change line by line: lists of plain values take one line."""
    return _lines(content, "\n") + "\n"


def _lines(value: Any, indent: str) -> str:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not any(isinstance(one, dict | list) for one in inside):
        return json.dumps(value, allow_nan=False)
    deeper = indent + " "
    if isinstance(value, list):
        return f"[{deeper}{f',{deeper}'.join(_lines(one, deeper) for one in value)}{indent}]"
    rows = (f"{json.dumps(name)}: {_lines(one, deeper)}" for name, one in value.items())
    return f"{{{deeper}{f',{deeper}'.join(rows)}{indent}}}"
