"""The options of launch/evaluate.py, and the settings they stand for."""

import argparse
from collections.abc import Sequence
from dataclasses import astuple
from typing import get_args

from pydantic import ValidationError

from launch.config import EvaluationConfig
from tacaf.command import Parser, to_location, to_path
from tacaf.data.index import ShardIndex
from tacaf.evaluation.__main__ import locations_of
from tacaf.evaluation.rerank import Rerank
from tacaf.evaluation.trials import choose_setting
from tacaf.model.tacafnet import Embedding
from tacaf.vocabulary import InputError


def chosen_settings(arguments: argparse.Namespace, index: ShardIndex, usual: Embedding) -> EvaluationConfig:
    """The command's options as settings, with the embedding that is usual for the model unless they name another.

    InputError for what the protocol does not define.
    """
    locations = locations_of(arguments.locations)
    if arguments.exclude == "location" and not locations:
        locations = index.locations or {}
    choices = {
        "exclude": arguments.exclude,
        "locations": locations,
        **{name: getattr(arguments, name) for name in ("query_list", "gallery_list")},
    }
    choose_setting(arguments.protocol, arguments.mode, arguments.direction, **choices)
    values = {
        "modes": [arguments.mode] if arguments.mode else None,
        "directions": [arguments.direction] if arguments.direction and not arguments.mode else None,
        "shots": [arguments.shots] if arguments.shots else None,
        **{name: getattr(arguments, name) for name in ("protocol", "gallery_draw", "splits", "metric")},
        "embedding": arguments.embedding or usual,
        "batch_size": arguments.batch_size,
        "rerank": None if arguments.rerank is None else astuple(Rerank.of(arguments.rerank)),
        **choices,
    }
    try:
        return EvaluationConfig.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        raise InputError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


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
