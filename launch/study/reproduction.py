"""Reproducing the table of a public data set: its shards, its trainings, and their results so far."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from launch.study.comparison import ComparisonRow
from launch.study.rows import Row
from launch.study.trainings import Training
from shards.packers import PACKERS
from shards.verify import verify
from tacaf.data.index import ShardIndex
from tacaf.datasets import PUBLIC
from tacaf.evaluation.circumstances import join_circumstances
from tacaf.evaluation.features import load_features
from tacaf.evaluation.results import Result, read_result
from tacaf.evaluation.score import score_setting
from tacaf.evaluation.setting import choose_setting
from tacaf.provenance import git_commit, published, versions
from tacaf.run_files import FEATURES_FILE, RESULTS_FOLDER
from tacaf.vocabulary import INDEX_FILE, InputError


class ReproductionCell(NamedTuple):
    """One training of the table: a row with a seed and, on RegDB, a split."""

    row: str
    seed: int
    split: int | None
    training: Training


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What is trained, rows x seeds (on RegDB x splits), and where its files are."""

    data_set: str
    raw: Path  # the data set as published
    out: Path  # the shards, the runs and the table
    config: Path
    settings: tuple[str, ...]  # override the configuration of every training
    rows: Mapping[str, Row]
    seeds: tuple[int, ...]
    regdb_splits: tuple[int, ...]
    camera_draws: Path | None  # the folder of rand_perm_cam.mat, for SYSU-MM01's official draw

    @property
    def shards(self) -> Path:
        return self.out / "shards"

    def cells(self) -> list[ReproductionCell]:
        """All trainings. The seed varies slowest, so that every row is trained once before any is repeated."""
        splits = self.regdb_splits if PUBLIC[self.data_set].numbered_splits else (None,)
        return [self._cell(row, seed, split) for seed in self.seeds for split in splits for row in self.rows.values()]

    def _cell(self, row: Row, seed: int, split: int | None) -> ReproductionCell:
        settings = [*self.settings, f"data.shards={self.shards}", f"evaluation.protocol={self.data_set}"]
        settings += [f"evaluation.splits={self.camera_draws}"] if self.camera_draws else []
        settings += [f"seed={seed}", *([f"data.split=train_{split}"] if split else []), *row.settings]
        name = "-".join([row.name, *([f"split{split}"] if split else []), f"seed{seed}"])
        return ReproductionCell(row.name, seed, split, Training(self.out / "runs" / name, self.config, tuple(settings)))

    def pack(self) -> None:
        """Pack and verify the data set unless that was done before."""
        if (self.shards / INDEX_FILE).exists():
            return
        _, pack = PACKERS[self.data_set]
        print(pack(self.raw, self.shards).summary(), flush=True)
        problems = verify(self.shards)
        if problems:
            raise InputError(f"{self.shards}: verification found {len(problems)} problems; the first: {problems[0]}")

    def measured(self, cells: Sequence[ReproductionCell], failures: Mapping[Training, str]) -> list[ComparisonRow]:
        """Every row with the results measured so far, and a sentence for what is missing.

        failures: for each training that failed, the reason why it has no scores.
        """
        rows = []
        for row in self.rows.values():
            own = [cell for cell in cells if cell.row == row.name]
            done = [cell for cell in own if cell.training.finished()]
            lacks = [
                f"{cell.training.folder.name}: {failures[cell.training]}" for cell in own if cell.training in failures
            ]
            waiting = len(own) - len(done) - len(lacks)
            lacks += [f"{waiting} of {len(own)} trainings not finished"] if waiting else []
            seeds = [self._results([cell for cell in done if cell.seed == seed]) for seed in self.seeds]
            rows.append(ComparisonRow(row, [results for results in seeds if results], lacks))
        return rows

    def _results(self, done: Sequence[ReproductionCell]) -> list[Result]:
        """The results of one seed's trainings. RegDB's splits are scored together, because each split is a trial."""
        if not done:
            return []
        stored = [_results_of(cell) for cell in done]
        if not PUBLIC[self.data_set].numbered_splits:
            return stored[0]
        features = [load_features(cell.training.folder / RESULTS_FOLDER / FEATURES_FILE) for cell in done]
        scoring = done[0].training.config().evaluation.scoring
        return [
            score_setting(
                features,
                choose_setting(self.data_set, direction=same[0].direction),
                scoring,
                join_circumstances([result.circumstances for result in same]),
            )
            for same in zip(*stored, strict=True)
        ]

    def facts(self) -> dict[str, Any]:
        """The circumstances of all rows, which are printed below the table."""
        index = ShardIndex.open(str(self.shards))
        config = self.cells()[0].training.config()
        return {
            "set": index.name,
            "sha256": index.sha256,
            "identities": len(index.pids_of(config.data.split)),
            "seeds": list(self.seeds),
            "settings": published(list(self.settings)),
            "config": self.config.name,
            "metric": config.evaluation.metric,
            "embedding": config.evaluation.embedding,
            "epochs": config.train.epochs,
            "versions": versions(),
            "commit": git_commit(),
        }


def _results_of(cell: ReproductionCell) -> list[Result]:
    """The results of the training itself, without those that were scored later with other options."""
    paths = sorted((cell.training.folder / RESULTS_FOLDER).glob("*.json"))
    evaluation = cell.training.config().evaluation
    return [result for result in map(read_result, paths) if result.scored_as(evaluation)]
