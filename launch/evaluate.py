"""Score a trained model: deepspeed launch/evaluate.py --run RUN --shards SHARDS --protocol sysu_mm01 ...

Every image of the test identities is embedded once, whatever the number of ranks; rank 0 scores and writes
RUN/results/<protocol>-<mode>-<shots>shot-<draw>.json. Several runs of RegDB, one a split: the table over them as well.
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
from typing import get_args

from tacaf import distributed
from tacaf.command import Parser, entry, to_location, to_path
from tacaf.data.index import ShardIndex
from tacaf.data.storage import RemoteConfig
from tacaf.evaluation.config import EvaluationConfig
from tacaf.evaluation.features import FeatureSet
from tacaf.evaluation.protocols import PROTOCOLS
from tacaf.files import shown, write_whole
from tacaf.images import far_apart
from tacaf.model.file import MODEL, ModelCard, load_model
from tacaf.train.config import load_config
from tacaf.train.evaluation_options import chosen_settings
from tacaf.train.leak import own_split, refuse_leak, refuse_mixed
from tacaf.train.processes import start_distributed, stop_distributed
from tacaf.train.scoring import circumstances_of, embed_identities, joined, score_all, show, write_results
from tacaf.vocabulary import Embedding, InputError


def evaluate(arguments: argparse.Namespace) -> None:
    place = start_distributed()
    with distributed.together():
        index = ShardIndex.open(arguments.shards, remote_of(arguments.run[0]))
        cards = [load_model(run / MODEL)[1] for run in arguments.run]
        splits = chosen_splits(arguments, index, cards)
        usual = usual_embedding(cards)
        settings = chosen_settings(arguments, index, usual)
        if place.rank == 0:
            for text in dict.fromkeys(text for card in cards for text in scale_warnings(card, index)):
                print(f"warning: {text}", file=sys.stderr, flush=True)
    scored: list[tuple[FeatureSet, dict]] = []
    for run, split in zip(arguments.run, splits, strict=True):
        with distributed.together():
            model, card = load_model(run / MODEL)
        features, _ = embed_identities(
            model.to(place.device),
            index,
            index.pids_of(split),
            card.height,
            card.width,
            settings,
            place,
            arguments.flip,
        )
        scored.append((features, circumstances_of(settings, card, split, arguments.flip, index)))
        with distributed.together():
            if place.rank == 0:
                write_and_show(arguments, settings, scored[-1:], run / "results", usual)
    with distributed.together():
        if place.rank == 0 and len(scored) > 1:
            write_and_show(arguments, settings, scored, parent_of(arguments.run), usual)


def scale_warnings(card: ModelCard, index: ShardIndex) -> list[str]:
    """Where grey values of more than 8 bits become clearly other pixels here than in the model's training set."""
    return [
        f"{modality}: the set maps grey values by {scale.describe()}, the model was trained with "
        f"{card.scales[modality].describe()}; pack the set again with that --thermal-range if the cameras are alike"
        for modality, scale in index.scales.items()
        if modality in card.scales and far_apart(scale, card.scales[modality])
    ]


def usual_embedding(cards: Sequence[ModelCard]) -> Embedding:
    """The one that these models were scored with when their trainings ended. InputError where they differ."""
    found = {card.usual_embedding for card in cards}
    if len(found) > 1:
        raise InputError(
            f"expected runs with one evaluation.embedding, got {', '.join(sorted(found))}; score them one by one"
        )
    return found.pop()


def chosen_splits(arguments: argparse.Namespace, index: ShardIndex, cards: Sequence[ModelCard]) -> list[str]:
    """The list each run's model is scored on; InputError before any work for one that it has seen."""
    if len(cards) > 1:
        if not PROTOCOLS[arguments.protocol].one_file_per_split:
            raise InputError(
                f"expected one run under {arguments.protocol}, got {len(cards)}; several are for regdb, which has a "
                "model a split"
            )
        if arguments.split or arguments.features:
            raise InputError(
                f"expected neither --split nor --features with {len(cards)} runs, each of which has its own; leave "
                "them out"
            )
        refuse_mixed(cards)
    splits = [arguments.split or own_split(card.trained_on) for card in cards]
    for card, split in zip(cards, splits, strict=True):
        refuse_leak(index, card.trained_on, index.pids_of(split))
    return splits


def write_and_show(
    arguments: argparse.Namespace,
    settings: EvaluationConfig,
    scored: list[tuple[FeatureSet, dict]],
    folder: Path,
    usual: Embedding,
) -> None:
    """Results of one run, or of all of them as one table, into `folder`."""
    features = [one for one, _ in scored]
    if arguments.features:
        features[0].save(arguments.features)
    facts = joined([known for _, known in scored])
    results = score_all(features if len(features) > 1 else features[0], settings, settings.asked(), facts)
    paths = write_results(results, folder, usual)
    if arguments.json and len(scored) == len(arguments.run):
        write_whole(arguments.json, json.dumps(results[0] if len(results) == 1 else results, indent=1))
    print(show(results))
    print("written: " + ", ".join(map(shown, paths)))


def parent_of(runs: list[Path]) -> Path:
    """The folder that all runs lie in: the place of their common table."""
    return Path(os.path.commonpath([run.resolve().parent for run in runs]))


def remote_of(run: Path) -> RemoteConfig:
    """How the run read sets at an address: the same cache and options serve its scoring."""
    path = run / "config.yaml"
    return load_config(path, []).data.remote if path.exists() else RemoteConfig()


def parse(description: str | None, argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run",
        type=to_path,
        nargs="+",
        required=True,
        help="run folder with model.safetensors; for RegDB several, one a split, which also gives the table over them",
    )
    parser.add_argument(
        "--shards", type=to_location, required=True, help="shard set to score on: a folder or an address"
    )
    parser.add_argument("--protocol", choices=("sysu_mm01", "regdb", "llcm", "generic"), required=True)
    parser.add_argument("--mode", choices=("all_search", "indoor_search"), help="SYSU-MM01; both when left out")
    parser.add_argument(
        "--direction", help="visible_to_infrared, infrared_to_visible; generic: within one modality, too"
    )
    parser.add_argument("--shots", type=int, choices=(1, 10), help="SYSU-MM01; both when left out")
    parser.add_argument(
        "--gallery-draw", choices=("official", "literature"), help="official where --splits gives the permutations"
    )
    parser.add_argument("--splits", type=to_path, help="folder with the authors' rand_perm_cam.mat")
    parser.add_argument(
        "--split", help="named identity list of the shard set; test where left out, test_3 for a model of train_3"
    )
    parser.add_argument("--metric", choices=("cosine", "euclidean"))
    parser.add_argument("--embedding", choices=get_args(Embedding), help="default: as the run was scored")
    parser.add_argument("--flip", action="store_true", help="average with the mirror image")
    parser.add_argument("--rerank", nargs="*", metavar="K1 K2 LAMBDA", help="k-reciprocal re-ranking; 20 6 0.3")
    parser.add_argument("--exclude", help="generic: none, camera, location or pid_and_camera left out of a list")
    parser.add_argument(
        "--locations", nargs="+", default=[], metavar="CAMID=LOCATION", help="for --exclude location; or the set's own"
    )
    parser.add_argument("--query-list", type=to_path, help="generic: file with keys of the images that ask, one a line")
    parser.add_argument("--gallery-list", type=to_path, help="generic: file with keys of the images that answer")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--features", type=to_path, help="keep the features as .npz")
    parser.add_argument("--json", type=to_path, help="also write the results here")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # some launchers add it
    return parser.parse_args(argv)


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(__doc__, argv)
    try:
        evaluate(args)
    finally:
        stop_distributed()
    return 0
