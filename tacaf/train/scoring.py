"""Scores of a model on a shard set: the features of its images, one result for each setting, and their files."""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tacaf.data.evaluation_pipeline import EvaluationPipeline
from tacaf.data.index import ShardIndex
from tacaf.evaluation.__main__ import result_table
from tacaf.evaluation.config import Asked, EvaluationConfig
from tacaf.evaluation.extract import extract
from tacaf.evaluation.features import FeatureSet
from tacaf.evaluation.results import on_own_set, read_result
from tacaf.evaluation.score import score
from tacaf.files import write_whole
from tacaf.model.file import ModelCard
from tacaf.model.tacafnet import TacafNet
from tacaf.train.leak import own_split
from tacaf.train.processes import Place
from tacaf.vocabulary import Embedding, InputError, Modality

# What makes two results of one name different things, and not one that was scored again.
FACTS = ("scored_on", "split", "metric", "exclusion", "locations", "query_list", "gallery_list", "unique_ids")


def embed_identities(
    model: TacafNet,
    index: ShardIndex,
    pids: np.ndarray,
    height: int,
    width: int,
    settings: EvaluationConfig,
    place: Place,
    flip: bool = False,
    watched: Callable[[Iterable[Any], int], Iterable[Any]] | None = None,
) -> tuple[FeatureSet, np.ndarray]:
    """Features of every image of these identities and their rows in the index; the same on every rank.

    With `flip` the embedding is the normalised mean of the image's and its mirror image's. `watched`
    passes the batches on (`Run.watched`), given how many of them every rank has at least; the model stays as it was if
    it raises.
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
    if watched is not None:
        batches = watched(batches, math.ceil(len(rows) // place.world_size / settings.batch_size))
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
    """One JSON file a result, named after what it is; its embedding is in the name where it is not the `usual` one, its
    set where that is not the one the model was trained on. A result of other facts under that name is never replaced:
    the new one gets a number.
    """
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
            _other_split(result),
            None if on_own_set(result) else f"on-{result['scored_on']['set']}-{result['scored_on']['sha256'][:8]}",
        ]
        paths.append(_free(folder, "-".join(str(part) for part in parts if part), result))
        write_whole(paths[-1], json.dumps(result, indent=1))
    return paths


def _other_split(result: dict) -> str | None:
    """The list that was scored, where it is not the one that belongs to the model."""
    split, trained_on = result["split"], result["trained_on"]
    own = own_split(trained_on) if isinstance(trained_on, dict) and "split" in trained_on else "test"
    return split if isinstance(split, str) and split != own else None


def _free(folder: Path, name: str, result: dict) -> Path:
    """The first of name.json, name-2.json, ... that is not there or holds an earlier result of the same facts."""
    number = 1
    while True:
        path = folder / (f"{name}.json" if number == 1 else f"{name}-{number}.json")
        if not path.exists() or _same_kind(path, result):
            return path
        number += 1


def _same_kind(path: Path, result: dict) -> bool:
    try:
        held = read_result(path)
    except InputError:
        return False
    new = json.loads(json.dumps({name: result[name] for name in FACTS}))
    return {name: held.get(name) for name in FACTS} == new


def show(results: list[dict]) -> str:
    """The table a person reads at the end."""
    return "\n\n".join(result_table(result) for result in results)
