"""Rewrite the report.html of a finished run: python launch/report.py --run RUN [--shards SHARDS] [--features F.npz]

This reads the run's config, metrics, results, features and model, and the images from the shards. It scores nothing.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("launch.report")

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tacaf.command import Parser, entry, to_location, to_path
from tacaf.data.index import ShardIndex
from tacaf.evaluation.features import FeatureSet, load_features
from tacaf.files import shown
from tacaf.model.file import MODEL, load_model
from tacaf.report.pictures import ScoredImages, make_pictures
from tacaf.report.report import write_report
from tacaf.run_files import CONFIG_FILE, FEATURES_FILE, RESULTS_FOLDER
from tacaf.train.config import load_config
from tacaf.vocabulary import InputError

FACTS = ("pid", "camid", "modality", "number")


def rewrite_report(run: Path, shards: str | Path | None = None, features_file: Path | None = None) -> Path:
    """Rewrite the report. Returns its path. `shards` and `features_file` default to those of the run.

    Raises InputError if the folder is not a run, or if its features or its model are missing or of another set.
    """
    if not (run / CONFIG_FILE).is_file():
        raise InputError(f"expected a run folder with config.yaml, got {run}; give the folder that a training wrote")
    config = load_config(run / CONFIG_FILE, [])
    index = ShardIndex.open(shards or config.data.shards, config.data.remote)
    features = load_features(features_file or run / RESULTS_FOLDER / FEATURES_FILE)
    scored = ScoredImages(features, index, rows_of(index, features))
    model, card = load_model(run / MODEL)
    if features.width != model.embedding_width(config.evaluation.embedding):
        raise InputError(
            f"expected features {model.embedding_width(config.evaluation.embedding)} wide, as those of the run's model"
            f" are, got {features.width}; give the features of this run"
        )
    size = (card.height, card.width)
    settings = config.evaluation.for_split(config.evaluation.split)
    pictures = make_pictures(scored, settings, config.seed, model=model.eval(), size=size)
    given = features_file.name if features_file else None
    return write_report(run, settings, pictures._replace(given=given))


def rows_of(index: ShardIndex, features: FeatureSet) -> np.ndarray:
    """The index row of each feature, int64 [n]. Raises InputError if one has none, because it is of another set."""
    rows = np.sort(index.rows_of(np.unique(features.pid)))
    row_of = {facts: row for row, facts in zip(rows.tolist(), _facts(index.columns, rows), strict=True)}
    row_N = [row_of.get(facts, -1) for facts in _facts(vars(features), np.arange(len(features)))]
    if -1 in row_N:
        lost = row_N.index(-1)
        raise InputError(
            f"expected features of images in {index.place}, got one that is not there (row {lost}, pid"
            f" {features.pid[lost]}, camera {features.camid[lost]}, number {features.number[lost]}); give the shards"
            " that the run was scored on"
        )
    return np.array(row_N, dtype=np.int64)


def _facts(columns: Mapping[str, np.ndarray], rows: np.ndarray) -> list[tuple[int, ...]]:
    return list(zip(*(np.asarray(columns[name])[rows].tolist() for name in FACTS), strict=True))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=to_path, required=True, help="run folder of a finished training")
    parser.add_argument("--shards", type=to_location, help="where the shard set is now; default: the run's data.shards")
    parser.add_argument(
        "--features",
        type=to_path,
        help="features to make the pictures from, which the report then names; default: RUN/results/features.npz",
    )
    return parser.parse_args(argv)


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    print(f"report: {shown(rewrite_report(args.run, args.shards, args.features))}")
    return 0
