"""What the ablation keeps of a training: a result file with scores by identity, enough to make every table anew.

It is small enough to be published; with it, neither the run nor its features are needed any more.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from launch.study.identity_scores import IdentityScores, score_identities
from launch.study.trainings import SCRIPT, Training, refuse_other_values
from tacaf.documents import load_json
from tacaf.evaluation.features import load_features
from tacaf.evaluation.results import on_own_set, read_result
from tacaf.files import read_bytes, shown, write_whole
from tacaf.provenance import published
from tacaf.run_files import read_starts
from tacaf.train.config import Config
from tacaf.vocabulary import InputError

MOST_BYTES = 2**26  # of a file with the scores of a training
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
        """InputError if the run or the result file that is there was made with other values, or nothing would be."""
        evaluation = self.training.config().evaluation
        if (evaluation.protocol, evaluation.split, evaluation.rerank) != ("sysu_mm01", "val", None):
            raise InputError(
                "expected evaluation.protocol sysu_mm01, split val and no rerank, since choices are made on validation"
                f" identities by plain distances, got {evaluation.protocol}, {evaluation.split} and"
                f" {evaluation.rerank}; set them, and data.split to train"
            )
        self.training.refuse_other_settings()
        if self.file.exists():
            refuse_other_values(
                self.file, self._stored_config(self._stored()), self.training.config(), _WHERE, "--results"
            )

    def trained_at(self) -> list[str]:
        """The commits that a kept training was made at, one a start."""
        starts = self._stored()["trainings"] if self.file.exists() else []
        return [start["commit"] for start in starts if start["commit"]]

    def can_collect(self, split: Scored) -> bool:
        """Whether `collect` need not embed anything."""
        return self.training.finished() and (split == "val" or all(path.exists() for path in self._test_files()))

    def people(self, split: Scored) -> IdentityScores | None:
        """The kept scores; None where there are none yet."""
        found = self._stored()["scores"].get(split) if self.file.exists() else None
        return IdentityScores.of_lists(found["people"]) if found else None

    def collect(self, split: Scored) -> None:
        """Write the scores of the finished training; the test identities are embedded here, the others were there.

        Scores of both kinds in a file are of one and the same model.
        """
        results = self.training.folder / "results"
        scores = {"val": self._result("val", results / "features.npz", sorted(results.glob("*.json")))}
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
            "trainings": read_starts(self.training.folder / "environment.json"),
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.file, _compact(published(content)))

    def _test_files(self) -> tuple[Path, Path]:
        return self.training.folder / "test.npz", self.training.folder / "test.json"

    def _test(self) -> dict[str, Any]:
        features, result = self._test_files()
        if not self.can_collect("test"):
            config = self.training.config()
            asked, evaluation = config.evaluation.asked()[0], config.evaluation
            words = ["--run", self.training.folder, "--shards", config.data.shards, "--split", "test"]
            words += ["--protocol", evaluation.protocol, "--mode", asked.mode, "--shots", asked.shots]
            words += ["--metric", evaluation.metric, "--embedding", evaluation.embedding]
            words += ["--gallery-draw", evaluation.gallery_draw] if evaluation.gallery_draw else []
            words += ["--splits", evaluation.splits] if evaluation.splits else []
            words += ["--features", features, "--json", result]
            command = [sys.executable, str(SCRIPT.with_name("evaluate.py")), *map(str, words)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise InputError(
                    f"{self.training.folder}: expected test scores, got: {done.stderr.strip()[-300:]}; mend that and"
                    " give the same command again"
                )
        return self._result("test", features, [result])

    def _result(self, split: Scored, features: Path, paths: Sequence[Path]) -> dict[str, Any]:
        """The score file of that split, as the protocol's program wrote it, and the same scores by identity."""
        evaluation = self.training.config().evaluation
        asked = evaluation.asked()[0]
        people = score_identities(load_features(features), evaluation.setting(asked), evaluation.metric)
        wanted = {
            "split": split,
            "mode": asked.mode,
            "shots": asked.shots,
            "metric": evaluation.metric,
            "embedding": evaluation.embedding,
            "flip": False,
            "rerank": False,
        }
        for result in map(read_result, paths):
            if on_own_set(result) and all(result[name] == value for name, value in wanted.items()):
                means = people.means()
                assert all(abs(result["mean"][name] - means[name]) < 1e-6 for name in means), "scores of other features"
                return {**result, "people": people.as_lists()}
        raise InputError(
            f"{self.training.folder}: expected a result of {split} identities among"
            f" {', '.join(path.name for path in paths) or 'none'}; remove the run, and it is made again"
        )

    def _stored(self) -> dict[str, Any]:
        cure = "remove it, and the training's scores are written again"
        content = load_json(read_bytes(self.file, MOST_BYTES), shown(self.file), MOST_BYTES, cure)
        if not isinstance(content, dict) or not isinstance(content.get("scores"), dict):
            raise InputError(f"{shown(self.file)}: expected the scores of a training, got something else; {cure}")
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
    return folder / "ablation" / f"{benchmark}-{row}-seed{seed}.json"


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
