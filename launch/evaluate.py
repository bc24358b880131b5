"""Score a trained model: deepspeed launch/evaluate.py --run RUN --shards SHARDS --protocol sysu_mm01 ...

Every image of the test identities is embedded once, whatever the number of ranks; rank 0 scores and writes
RUN/results/<protocol>-<mode>-<shots>shot-<draw>.json. Several runs of RegDB, one a split: the table over them as well.
"""

from tacaf.command import start

if __name__ == "__main__":
    start("launch.evaluate")

import argparse
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from launch import engine as deepspeed_engine
from launch.config import Asked, EvaluationConfig, load_config
from launch.engine import Place
from launch.evaluation_options import chosen_settings, parse
from launch.leak import own_split, refuse_leak, refuse_mixed
from launch.stop import StopRequest
from tacaf import distributed
from tacaf.command import entry
from tacaf.data.index import ShardIndex
from tacaf.data.pipeline import EvaluationPipeline
from tacaf.data.storage import RemoteConfig
from tacaf.evaluation.__main__ import result_table
from tacaf.evaluation.extract import extract
from tacaf.evaluation.features import FeatureSet
from tacaf.evaluation.protocols import score
from tacaf.evaluation.tables import PROTOCOLS
from tacaf.files import shown, write_whole
from tacaf.model.file import ModelCard, load_model
from tacaf.model.tacafnet import Embedding, TacafNet
from tacaf.vocabulary import InputError, Modality

MODEL = "model.safetensors"


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


def score_all(
    features: FeatureSet | list[FeatureSet], settings: EvaluationConfig, asked: list[Asked], circumstances: dict
) -> list[dict]:
    """One result for each of `asked`; several sets are the splits of a protocol with a model a split."""
    return [
        score(
            features,
            settings.protocol,
            *one,
            gallery_draw=settings.gallery_draw,
            splits=settings.splits,
            metric=settings.metric,
            circumstances=circumstances,
            rerank=settings.reranking,
            **settings.choices,
        )
        for one in asked
    ]


def circumstances_of(
    settings: EvaluationConfig, card: ModelCard, split: str, flip: bool = False, index: ShardIndex | None = None
) -> dict:
    """What a result must say beside its figures: split, embedding, flip, training set and seed, which model."""
    return {
        "split": split,
        "embedding": settings.embedding,
        "flip": flip,
        "trained_on": {**card.trained_on, "model": card.chosen},
        "scored_on": index and {"set": index.name, "sha256": index.sha256},
        "seed": card.seed,
    }


def joined(circumstances: list[dict]) -> dict:
    """The circumstances of a table over splits: what differs is a list, a split each."""
    return {
        name: value if all(one[name] == value for one in circumstances) else [one[name] for one in circumstances]
        for name, value in circumstances[0].items()
    }


def write_results(results: list[dict], folder: Path, usual: Embedding | None = None) -> list[Path]:
    """One JSON file a result, named after what it is; its embedding is in the name where it is not the `usual` one."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for result in results:
        parts = [
            result["protocol"],
            result["mode"] or result["direction"],
            f"{result['shots']}shot" if result["shots"] else None,
            result["gallery_draw"],
            f"{len(result['split'])}splits" if isinstance(result["split"], list) else None,
            result["embedding"] if usual and result["embedding"] != usual else None,
            "flip" if result["flip"] else None,
            "rerank" if result["rerank"] else None,
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
        index = ShardIndex.open(arguments.shards, remote_of(arguments.run[0]))
        cards = [load_model(run / MODEL)[1] for run in arguments.run]
        splits = chosen_splits(arguments, index, cards)
        usual = usual_embedding(cards)
        settings = chosen_settings(arguments, index, usual)
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


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(__doc__, argv)
    try:
        evaluate(args)
    finally:
        deepspeed_engine.stop_distributed()
    return 0
