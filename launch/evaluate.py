"""Score a trained model: deepspeed launch/evaluate.py --run RUN --shards SHARDS --protocol sysu_mm01 ...

Every image of the test identities is embedded once, by all ranks together; rank 0 scores them and writes
RUN/results/<protocol>-<mode>-<shots>shot-<draw>.json. With several runs of RegDB, one per split, it also writes the
table over the splits.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("launch.evaluate")

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, get_args

from tacaf import distributed
from tacaf.command import Parser, entry, to_location, to_path
from tacaf.data.index import ShardIndex
from tacaf.data.storage import RemoteConfig
from tacaf.datasets import own_test_split
from tacaf.evaluation.circumstances import Circumstances, join_circumstances
from tacaf.evaluation.features import FeatureSet
from tacaf.evaluation.options import add_protocol_options, scoring_of, settings_of
from tacaf.evaluation.protocols import PROTOCOLS
from tacaf.evaluation.results import write_results
from tacaf.evaluation.score import score_all
from tacaf.evaluation.setting import Scoring, Setting
from tacaf.evaluation.text import result_tables
from tacaf.files import shown, write_whole
from tacaf.images import far_apart
from tacaf.model.file import MODEL, ModelCard, load_model
from tacaf.run_files import CONFIG_FILE, RESULTS_FOLDER
from tacaf.train.config import load_config
from tacaf.train.leak import check_protocol, refuse_leak, refuse_mixed
from tacaf.train.processes import Place, start_distributed, stop_distributed
from tacaf.train.scoring import Extraction, circumstances_of, embed_identities
from tacaf.vocabulary import Embedding, InputError

MOST_IMAGES_A_BATCH = 2**16


class Task(NamedTuple):
    """What is scored and how, for every run."""

    shards: ShardIndex
    settings: list[Setting]
    scoring: Scoring
    usual: Embedding  # with which the models were scored at the end of their trainings


class Embedded(NamedTuple):
    """The features of one run's model, and the facts about them that results record."""

    features: FeatureSet
    known: Circumstances


def evaluate(args: argparse.Namespace) -> None:
    place = start_distributed()
    with distributed.together():
        index = ShardIndex.open(args.shards, remote_of(args.run[0]))
        cards = [load_model(run / MODEL)[1] for run in args.run]
        splits = chosen_splits(args, index, cards)
        usual = usual_embedding(cards)
        check_protocol(index, args.protocol)
        settings = settings_of(args, every=True, own_locations=index.locations)
        task = Task(index, settings, scoring_of(args), usual)
        if place.rank == 0:
            for text in dict.fromkeys(text for card in cards for text in scale_warnings(card, index)):
                print(f"warning: {text}", file=sys.stderr, flush=True)
    embedded: list[Embedded] = []
    for run, split in zip(args.run, splits, strict=True):
        embedded.append(embed(args, task, run, split, place))
        with distributed.together():
            if place.rank == 0:
                write_and_show(args, task, embedded[-1:], run / RESULTS_FOLDER)
    with distributed.together():
        if place.rank == 0 and len(embedded) > 1:
            write_and_show(args, task, embedded, parent_of(args.run))


def embed(args: argparse.Namespace, task: Task, run: Path, split: str, place: Place) -> Embedded:
    """The features that the run's model gives for the split; the same on every rank."""
    with distributed.together():
        model, card = load_model(run / MODEL)
    extraction = Extraction(
        height=card.height,
        width=card.width,
        embedding=args.embedding or task.usual,
        batch_size=args.batch_size,
        flip=args.flip,
    )
    pids = task.shards.pids_of(split)
    features, _ = embed_identities(model.to(place.device), task.shards, pids, extraction, place)
    return Embedded(features, circumstances_of(card, split, extraction, task.shards))


def write_and_show(args: argparse.Namespace, task: Task, embedded: Sequence[Embedded], folder: Path) -> None:
    """Score one run, or all runs as one table, write the results into `folder` and print them."""
    features = [one.features for one in embedded]
    if args.features:
        features[0].save(args.features)
    known = join_circumstances([one.known for one in embedded])
    results = score_all(features, task.settings, task.scoring, known)
    paths = write_results(results, folder, task.usual)
    if args.json and len(embedded) == len(args.run):
        values = [result.as_json() for result in results]
        write_whole(args.json, json.dumps(values[0] if len(values) == 1 else values, indent=1))
    print(result_tables(results))
    print("written: " + ", ".join(map(shown, paths)))


def scale_warnings(card: ModelCard, index: ShardIndex) -> list[str]:
    """Warnings if this set maps grey values of more than 8 bits clearly differently from the model's training set."""
    return [
        f"{modality}: the set maps grey values by {scale.describe()}, but the model was trained with "
        f"{card.scales[modality].describe()}; pack the set again with that --thermal-range if the cameras are similar"
        for modality, scale in index.scales.items()
        if modality in card.scales and far_apart(scale, card.scales[modality])
    ]


def usual_embedding(cards: Sequence[ModelCard]) -> Embedding:
    """The embedding with which these models were scored at the end of their trainings.

    Raises InputError if they differ.
    """
    embeddings = {card.usual_embedding for card in cards}
    if len(embeddings) > 1:
        raise InputError(
            f"expected runs with one evaluation.embedding, got {', '.join(sorted(embeddings))}; score them one by one"
        )
    return embeddings.pop()


def chosen_splits(args: argparse.Namespace, index: ShardIndex, cards: Sequence[ModelCard]) -> list[str]:
    """The split that each run's model is scored on. Raises InputError, before any work, for a training split."""
    if len(cards) > 1:
        if not PROTOCOLS[args.protocol].one_file_per_split:
            raise InputError(
                f"expected one run under {args.protocol}, got {len(cards)}; only regdb, which has one model per split,"
                " allows several"
            )
        if args.split or args.features:
            raise InputError(
                f"expected neither --split nor --features with {len(cards)} runs, each of which has its own split; "
                "leave them out"
            )
        refuse_mixed(cards)
    splits = [args.split or own_test_split(card.trained_on["split"]) for card in cards]
    for card, split in zip(cards, splits, strict=True):
        refuse_leak(index, card.trained_on, index.pids_of(split))
    return splits


def parent_of(runs: list[Path]) -> Path:
    """The folder that contains all runs, where their common table is written."""
    return Path(os.path.commonpath([run.resolve().parent for run in runs]))


def remote_of(run: Path) -> RemoteConfig:
    """The run's settings for sets at an address, so that scoring uses the same cache and options."""
    path = run / CONFIG_FILE
    return load_config(path, []).data.remote if path.exists() else RemoteConfig()


def parse(description: str | None, argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--run",
        type=to_path,
        nargs="+",
        required=True,
        help="run folder with model.safetensors; for RegDB, one folder per split for the table over the splits",
    )
    add("--shards", type=to_location, required=True, help="shard set to score on: a folder or an address")
    add("--split", help="split of the shard set; default: test, or test_3 for a model of train_3")
    add_protocol_options(parser, every=True)
    add(
        "--embedding",
        choices=get_args(Embedding),
        help="what an embedding contains; default: as the run was scored",
    )
    add("--flip", action="store_true", help="average each embedding with that of the mirror image")
    add("--batch-size", type=int, default=64, help="images at a time on each rank (default: %(default)s)")
    add("--features", type=to_path, help="also write the features to this .npz")
    add("--json", type=to_path, help="also write the results to this file")
    add("--local_rank", type=int, help=argparse.SUPPRESS)  # some launchers add it
    args = parser.parse_args(argv)
    if not 1 <= args.batch_size <= MOST_IMAGES_A_BATCH:
        raise InputError(f"expected --batch-size from 1 to {MOST_IMAGES_A_BATCH}, got {args.batch_size}; change it")
    return args


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(__doc__, argv)
    try:
        evaluate(args)
    finally:
        stop_distributed()
    return 0
