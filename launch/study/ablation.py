"""An ablation study: its trainings on every set, and its tables, which may be incomplete."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.study import ablation_table
from launch.study.ablation_cell import AblationCell
from launch.study.forest import draw_forest
from launch.study.kept import KeptScores, Scored, kept_file
from launch.study.rows import Row
from launch.study.study_sets import StudySet
from launch.study.trainings import Training
from tacaf.evaluation.config import EvaluationConfig
from tacaf.evaluation.setting import TRIALS
from tacaf.files import write_whole
from tacaf.model.efficientnet import PACKAGE
from tacaf.provenance import command, git_commit, published, versions


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """What is compared, rows x seeds on every set, and where its files are."""

    out: Path  # the runs, and the benchmarks made for them
    results: Path  # the scores of every training
    tables: Path
    config: Path
    settings: tuple[str, ...]  # override the configuration of every training
    sets: tuple[StudySet, ...]
    rows: Mapping[str, Row]
    seeds: tuple[int, ...]
    split: Scored
    name: str  # part of the tables' file names
    resamplings: int  # of the bootstrap

    def cells(self) -> list[AblationCell]:
        """All trainings. The seed varies slowest, so that every row is trained once before any is repeated."""
        stores = {one.name: KeptScores(kept_file(self.results, one.name)) for one in self.sets}
        return [
            self._cell(stores[one.name], one, row, seed)
            for seed in self.seeds
            for one in self.sets
            for row in self.rows.values()
        ]

    def _cell(self, store: KeptScores, study_set: StudySet, row: Row, seed: int) -> AblationCell:
        folder = self.out / "runs" / f"{study_set.name}-{row.name}-seed{seed}"
        own = (f"data.shards={study_set.folder}", f"seed={seed}", *row.settings)
        training = Training(folder, self.config, (*study_set.settings, *self.settings, *own))
        return AblationCell(study_set, row.name, seed, training, store)


def write_tables(study: Ablation, cells: Sequence[AblationCell], failures: Mapping[Training, str]) -> list[Path]:
    """Write a page (Markdown), a record (JSON) and a picture (SVG) for every set. Returns the pages' paths.

    failures: for each training that failed, the reason why it has no scores.
    """
    pages = []
    study.tables.mkdir(parents=True, exist_ok=True)
    for study_set in study.sets:
        own = [cell for cell in cells if cell.study_set is study_set]
        rows = [
            _measured(row, [cell for cell in own if cell.row == row.name], study.split, failures)
            for row in study.rows.values()
        ]
        content = ablation_table.record(rows, study.resamplings, _facts(study, study_set, own))
        name = "_".join(part for part in ("ablation", study_set.name, study.split, study.name) if part)
        pages.append(study.tables / f"{name}.md")
        write_whole(study.tables / f"{name}.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
        write_whole(study.tables / f"{name}.svg", draw_forest(content))
        write_whole(pages[-1], ablation_table.markdown(content))
    return pages


def _measured(
    row: Row, own: Sequence[AblationCell], split: Scored, failures: Mapping[Training, str]
) -> ablation_table.AblationRow:
    """A row with the scores measured so far, and a sentence for what is missing."""
    scores_of_seed = {cell.seed: cell.scores(split) for cell in own}
    seeds = {seed: scores for seed, scores in scores_of_seed.items() if scores is not None}
    lacks = [f"seed {cell.seed}: {failures[cell.training]}" for cell in own if cell.training in failures]
    waiting = len(own) - len(seeds) - len(lacks)
    lacks += [f"{waiting} of {len(own)} seeds not finished"] if waiting else []
    return ablation_table.AblationRow(row, seeds, lacks)


def _facts(study: Ablation, study_set: StudySet, own: Sequence[AblationCell]) -> dict[str, Any]:
    """The head of the page, and the circumstances in the record."""
    split = "test" if study.split == "test" else "validation"
    commits = sorted({commit[:7] + commit[40:] for cell in own for commit in cell.trained_at()})
    return {
        "title": f"What each part adds: {study_set.title}, {split} identities",
        "notes": [
            study_set.about,
            _recipe(own),
            f"Trained at {'commit' if len(commits) == 1 else 'commits'} {', '.join(commits) or 'none yet'}.",
        ],
        "benchmark": study_set.name,
        "split": split,
        "protocol": _protocol(own[0].training.config().evaluation),
        "seeds_asked": list(study.seeds),
        "config": study.config.name,
        "settings": published(list(study.settings)),
        "trained_at": commits,
        "versions": versions(),
        "commit": git_commit(),
        "command": command(),
    }


def _recipe(own: Sequence[AblationCell]) -> str:
    """How the rows were trained and scored, as a note on the page."""
    config = own[0].training.config()
    embeddings, weights = (" or ".join(dict.fromkeys(words)) for words in zip(*map(_may_differ, own), strict=True))
    steps = config.train.epochs * (config.train.steps_per_epoch or 0)
    length = f"{steps} steps" if steps else f"{config.train.epochs} epochs"
    return (
        f"{_protocol(config.evaluation)}, {config.evaluation.metric} distance,"
        f" {embeddings} embedding, no flip, no re-ranking; the last epoch's model after {length}"
        f" of {config.data.plan.images_per_modality} images per modality at {config.data.augment.height} x"
        f" {config.data.augment.width}, {weights}. Per cent, mean ± sample standard deviation over"
        " seeds. Intervals: Student's, with the standard error of a bootstrap over identities and seeds."
    )


def _protocol(evaluation: EvaluationConfig) -> str:
    """The protocol of the tables, in words."""
    setting = evaluation.for_split("val").setting(evaluation.asked()[0], read=False)
    gallery = (
        f"{setting.shots} shot, {setting.gallery_draw} draw, {TRIALS} trials"
        if setting.shots
        else "every gallery image"
    )
    return f"{setting.protocol.name}, {setting.search_name}, {gallery}"


def _may_differ(cell: AblationCell) -> tuple[str, str]:
    """What a `--try` may change of the recipe: the embedding, and the weights that the training starts from."""
    config = cell.training.config()
    given = config.train.weights or config.train.start_from or getattr(config.model.backbone, "weights", None)
    weights = f"from {Path(given).name}" if given else "from scratch"
    weight = config.model.ipcam.part_weight
    embedding = config.evaluation.embedding + (f" (parts weighted {weight:g})" if weight != 1 else "")
    return embedding, "from ImageNet weights" if given == PACKAGE else weights
