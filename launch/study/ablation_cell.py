"""One training of an ablation: its stored scores, and how they are collected from the finished run."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from launch.study.identity_scores import IdentityScores, score_identities
from launch.study.kept import KeptResult, KeptScores, KeptTraining, Scored
from launch.study.study_sets import StudySet
from launch.study.trainings import SCRIPT, Training, refuse_other_values
from tacaf.evaluation.features import load_features
from tacaf.evaluation.results import read_result
from tacaf.files import shown
from tacaf.provenance import published
from tacaf.run_files import ENVIRONMENT_FILE, FEATURES_FILE, RESULTS_FOLDER, read_starts
from tacaf.train.config import Config
from tacaf.vocabulary import InputError

_WHERE = ("run", "data.shards")  # settings that name folders, which differ between users


class AblationCell(NamedTuple):
    """One training of the ablation's tables, and the store of its scores."""

    study_set: StudySet
    row: str
    seed: int
    training: Training
    store: KeptScores

    def kept(self) -> KeptTraining | None:
        """What is stored about this training, or None."""
        return self.store.find(self.row, self.seed)

    def check(self, split: Scored) -> None:
        """Raise InputError if the run or its stored scores were made with other values, or it must not be scored."""
        config = self.training.config()
        if (config.evaluation.split, config.evaluation.rerank) != ("val", None):
            raise InputError(
                "expected evaluation.split val and no rerank, since choices are made on validation identities without"
                f" re-ranking, got {config.evaluation.split} and {config.evaluation.rerank}; set evaluation.split: val,"
                " evaluation.rerank: null and data.split: train"
            )
        if config.evaluation.query_list or config.evaluation.gallery_list:
            raise InputError("an ablation scores two splits, but a list of images belongs to one; leave the lists out")
        self.study_set.check(config, split)
        self.training.refuse_other_settings()
        kept = self.kept()
        if kept is not None:
            self._refuse_other_set(kept)
            refuse_other_values(self._where(), self._config_of(kept), config, aside=_WHERE, option="--results")

    def _refuse_other_set(self, kept: KeptTraining) -> None:
        """Raise InputError if these scores were made on another set of the same name."""
        now = self.study_set.sha256
        if now is None:
            return
        trained_on = kept.scores["val"].trained_on if "val" in kept.scores else None
        before = trained_on.get("sha256") if isinstance(trained_on, dict) else None
        if not isinstance(before, str):
            raise InputError(f"{self._where()} does not record its training set; remove the line")
        if before != now:
            raise InputError(
                f"{self._where()}: expected the training set, whose index has the hash {before[:12]}, got {now[:12]} in"
                f" {shown(self.study_set.folder)}; give that set with --shards, or another --results"
            )

    def trained_at(self) -> list[str]:
        """The commits at which a stored training was started or resumed."""
        kept = self.kept()
        return [start.commit for start in kept.trainings if start.commit] if kept else []

    def can_collect(self, split: Scored) -> bool:
        """Whether `collect` need not embed anything."""
        return self.training.finished() and (split == "val" or all(path.exists() for path in self._test_files()))

    def scores(self, split: Scored) -> IdentityScores | None:
        """The stored scores for this split, or None if it has not been scored yet."""
        kept = self.kept()
        result = kept.scores.get(split) if kept else None
        return IdentityScores.of(result.people) if result else None

    def collect(self, split: Scored) -> None:
        """Store the scores of the finished training. For "test", `embed_command` must have been run.

        The stored scores of both splits always belong to the same model.
        """
        results = self.training.folder / RESULTS_FOLDER
        scores: dict[Scored, KeptResult] = {
            "val": self._scores_in("val", results / FEATURES_FILE, sorted(results.glob("*.json")))
        }
        kept = self.kept()
        if split == "test":
            scores["test"] = self._test_scores()
        elif kept is not None and kept.scores.get("val") == scores["val"]:
            scores = kept.scores
        config = self.training.config()
        content = {
            "benchmark": self.study_set.name,
            "row": self.row,
            "seed": self.seed,
            "settings": list(self.training.settings_beside(_WHERE)),
            "scores": {name: result.as_json() for name, result in scores.items()},
            "config": config.model_dump(mode="json", exclude={"run": True, "data": {"shards"}}),
            "trainings": [start.model_dump() for start in read_starts(self.training.folder / ENVIRONMENT_FILE)],
        }
        self.store.keep(KeptTraining(**published(content)))

    def _test_files(self) -> tuple[Path, Path]:
        return self.training.folder / "test.npz", self.training.folder / "test.json"

    def embed_command(self) -> list[str] | None:
        """The command that embeds and scores the test identities, or None if that was done before."""
        features, result = self._test_files()
        if self.can_collect("test"):
            return None
        config = self.training.config()
        asked, evaluation = config.evaluation.asked()[0], config.evaluation
        words = ["--run", self.training.folder, "--shards", config.data.shards, "--split", "test"]
        words += ["--protocol", evaluation.protocol]
        words += ["--mode", asked.mode, "--shots", asked.shots] if asked.mode else ["--direction", asked.direction]
        words += ["--metric", evaluation.metric, "--embedding", evaluation.embedding]
        words += ["--gallery-draw", evaluation.gallery_draw] if evaluation.gallery_draw else []
        words += ["--exclude", evaluation.exclude] if evaluation.exclude else []
        if evaluation.locations:
            words += ["--locations", *(f"{camid}={location}" for camid, location in evaluation.locations.items())]
        words += ["--splits", evaluation.splits] if evaluation.splits else []
        words += ["--features", features, "--json", result]
        return [sys.executable, str(SCRIPT.with_name("evaluate.py")), *map(str, words)]

    def _test_scores(self) -> KeptResult:
        features, result = self._test_files()
        return self._scores_in("test", features, [result])

    def _scores_in(self, split: Scored, features: Path, paths: Sequence[Path]) -> KeptResult:
        """The result of this split among the files, with its scores by identity."""
        evaluation = self.training.config().evaluation
        setting = evaluation.setting(evaluation.asked()[0])
        people = score_identities(load_features(features), setting, evaluation.metric)
        for result in map(read_result, paths):
            same = (result.split, result.search, result.shots) == (split, setting.search_name, setting.shots)
            if same and result.scored_as(evaluation):
                means = people.means()
                assert all(abs(result.mean[name] - means[name]) < 1e-6 for name in means), (
                    "not scores of these features"
                )
                return KeptResult(**result.as_json(), people=people.record())
        raise InputError(
            f"{self.training.folder}: expected a result of {split} identities among"
            f" {', '.join(path.name for path in paths) or 'none'}; remove the run to train it again"
        )

    def _where(self) -> str:
        return f"{shown(self.store.file)}, row {self.row}, seed {self.seed}"

    def _config_of(self, kept: KeptTraining) -> Config:
        """The configuration of a stored training, with today's defaults for newer settings."""
        try:
            values = {**kept.config, "run": self.training.folder}
            return Config.model_validate({**values, "data": {**values["data"], "shards": "-"}})
        except (KeyError, TypeError, ValidationError):
            raise InputError(
                f"{self._where()}: its configuration is not valid in this release; use the release that made it, or"
                " remove the line"
            ) from None
