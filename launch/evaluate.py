"""Score a trained model: deepspeed launch/evaluate.py --run RUN --shards SHARDS --protocol sysu_mm01 ...

Every image of the test identities is embedded once, whatever the number of ranks; rank 0 scores and writes
RUN/results/<protocol>-<mode>-<shots>shot-<draw>.json.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError

from launch import engine as deepspeed_engine
from launch.config import Asked, EvaluationConfig, load_config
from launch.engine import Place
from launch.stop import StopRequest
from tacaf import distributed
from tacaf.checkpoint import write_whole
from tacaf.data.index import ShardIndex
from tacaf.data.pipeline import EvaluationPipeline
from tacaf.data.storage import RemoteConfig
from tacaf.evaluation.__main__ import result_table
from tacaf.evaluation.extract import extract
from tacaf.evaluation.features import FeatureSet
from tacaf.evaluation.protocols import score
from tacaf.evaluation.trials import choose_setting
from tacaf.model.file import ModelCard, load_model
from tacaf.model.tacafnet import TacafNet
from tacaf.vocabulary import InputError, Modality


def embed_identities(
    model: TacafNet,
    index: ShardIndex,
    pids: np.ndarray,
    height: int,
    width: int,
    settings: EvaluationConfig,
    place: Place,
    flip: bool = False,
    stop: StopRequest | None = None,
) -> tuple[FeatureSet, np.ndarray]:
    """Features of every image of these identities and their rows in the index; the same on every rank.

    With `flip` the embedding is the normalised mean of the image's and its mirror image's. With `stop`, StoppedError
    between two batches, the model as it was.
    """
    rows = index.rows_of(pids)

    def embed(images_BCHW: torch.Tensor, modality: Modality) -> torch.Tensor:
        found = model.embed(images_BCHW, modality, settings.embedding)
        if flip:
            found = torch.nn.functional.normalize(
                found + model.embed(images_BCHW.flip(3), modality, settings.embedding)
            )
        return found

    training = model.training
    model.eval()
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]] = EvaluationPipeline(
        index,
        rows,
        height,
        width,
        batch_size=settings.batch_size,
        rank=place.rank,
        ranks=place.world_size,
        device_id=place.device_id,
    )
    if stop is not None:
        shared = math.ceil(len(rows) // place.world_size / settings.batch_size)
        batches = stop.between(batches, shared)
    try:
        features = extract(embed, ((images.to(place.device), found) for images, found in batches), index.columns, rows)
    finally:
        model.train(training)
    return features, np.sort(rows)


def refuse_leak(index: ShardIndex, trained_on: dict, pids: np.ndarray) -> None:
    """InputError if the model was trained on identities that are to be scored (identity leakage)."""
    if trained_on.get("sha256") != index.sha256:
        return
    seen = np.intersect1d(index.pids_of(trained_on["split"]), pids)
    if len(seen):
        raise InputError(
            f"expected identities the model has not seen, got {len(seen)} that it was trained on (split"
            f" {trained_on['split']!r}, first pid {seen[0]}); score the split that belongs to this model"
        )


def score_all(features: FeatureSet, settings: EvaluationConfig, asked: list[Asked], circumstances: dict) -> list[dict]:
    """One result for each of `asked`."""
    return [
        score(
            features,
            settings.protocol,
            *one,
            gallery_draw=settings.gallery_draw,
            splits=settings.splits,
            metric=settings.metric,
            circumstances=circumstances,
        )
        for one in asked
    ]


def circumstances_of(settings: EvaluationConfig, card: ModelCard, split: str, flip: bool = False) -> dict:
    """What a result must say beside its figures: split, embedding, flip, training set and seed, which model."""
    return {
        "split": split,
        "embedding": settings.embedding,
        "flip": flip,
        "rerank": False,
        "trained_on": {**card.trained_on, "model": card.chosen},
        "seed": card.seed,
    }


def write_results(results: list[dict], folder: Path) -> list[Path]:
    """One JSON file a result, named after what it is."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for result in results:
        shots = f"{result['shots']}shot" if result["shots"] else None
        parts = [
            result["protocol"],
            result["mode"] or result["direction"],
            shots,
            result["gallery_draw"],
            "flip" if result["flip"] else None,
            "val" if result["split"] == "val" else None,
        ]
        paths.append(folder / ("-".join(str(part) for part in parts if part) + ".json"))
        write_whole(paths[-1], json.dumps(result, indent=1))
    return paths


def show(results: list[dict]) -> str:
    """The table a person reads at the end."""
    return "\n\n".join(result_table(result) for result in results)


def evaluate(arguments: argparse.Namespace) -> None:
    place = deepspeed_engine.start_distributed()
    with distributed.together():
        model, card = load_model(arguments.run / "model.safetensors")
        index = ShardIndex.open(arguments.shards, remote_of(arguments.run))
        settings = chosen_settings(arguments)
        pids = index.pids_of(arguments.split)
        refuse_leak(index, card.trained_on, pids)
    features, _ = embed_identities(
        model.to(place.device), index, pids, card.height, card.width, settings, place, arguments.flip
    )
    with distributed.together():
        if place.rank == 0:
            score_and_write(arguments, features, settings, card)


def score_and_write(
    arguments: argparse.Namespace, features: FeatureSet, settings: EvaluationConfig, card: ModelCard
) -> None:
    if arguments.features:
        features.save(arguments.features)
    facts = circumstances_of(settings, card, arguments.split, arguments.flip)
    results = score_all(features, settings, settings.asked(), facts)
    paths = write_results(results, arguments.run / "results")
    if arguments.json:
        write_whole(arguments.json, json.dumps(results[0] if len(results) == 1 else results, indent=1))
    print(show(results))
    print("written: " + ", ".join(map(str, paths)))


def remote_of(run: Path) -> RemoteConfig:
    """How the run read sets at an address: the same cache and options serve its scoring."""
    path = run / "config.yaml"
    return load_config(path, []).data.remote if path.exists() else RemoteConfig()


def chosen_settings(arguments: argparse.Namespace) -> EvaluationConfig:
    """The command's options as settings. InputError for what the protocol does not define."""
    choose_setting(arguments.protocol, arguments.mode, arguments.direction)
    values = {
        "modes": [arguments.mode] if arguments.mode else None,
        "directions": [arguments.direction] if arguments.direction and not arguments.mode else None,
        "shots": [arguments.shots] if arguments.shots else None,
        **{name: getattr(arguments, name) for name in ("protocol", "gallery_draw", "splits", "metric", "embedding")},
        "batch_size": arguments.batch_size,
    }
    try:
        return EvaluationConfig.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        raise InputError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run folder with model.safetensors")
    parser.add_argument("--shards", required=True, help="shard set to score on: a folder or an address")
    parser.add_argument("--protocol", choices=("sysu_mm01", "regdb", "llcm", "generic"), required=True)
    parser.add_argument("--mode", choices=("all_search", "indoor_search"), help="SYSU-MM01; both when left out")
    parser.add_argument("--direction", choices=("visible_to_infrared", "infrared_to_visible"))
    parser.add_argument("--shots", type=int, choices=(1, 10), help="SYSU-MM01; both when left out")
    parser.add_argument(
        "--gallery-draw", choices=("official", "literature"), help="official where --splits gives the permutations"
    )
    parser.add_argument("--splits", type=Path, help="folder with the authors' rand_perm_cam.mat")
    parser.add_argument(
        "--split", default="test", help="named identity list of the shard set (RegDB: test_1 ... test_10)"
    )
    parser.add_argument("--metric", choices=("cosine", "euclidean"))
    parser.add_argument("--embedding", choices=("full", "global_only"))
    parser.add_argument("--flip", action="store_true", help="average with the mirror image")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--features", type=Path, help="keep the features as .npz")
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # some launchers add it
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        evaluate(arguments)
    except InputError as error:
        if distributed.rank() == 0 or not error.shared:
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    finally:
        deepspeed_engine.stop_distributed()
    return 0


if __name__ == "__main__":
    sys.exit(main())
