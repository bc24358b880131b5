"""Embedding a shard set's images with a model, and the circumstances that a result records."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tacaf.data.evaluation_pipeline import EvaluationPipeline
from tacaf.data.index import ShardIndex
from tacaf.evaluation.circumstances import Circumstances, Facts
from tacaf.evaluation.config import EvaluationConfig
from tacaf.evaluation.extract import extract
from tacaf.evaluation.features import FeatureSet
from tacaf.model.file import ModelCard
from tacaf.model.tacafnet import TacafNet
from tacaf.train.processes import Place
from tacaf.vocabulary import Embedding, Modality


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """How images become embeddings. `flip`: average the embeddings of an image and its mirror image, and normalise."""

    height: int  # pixels, of the model's input
    width: int
    embedding: Embedding
    batch_size: int = 64
    flip: bool = False

    @classmethod
    def of(cls, height: int, width: int, settings: EvaluationConfig) -> "Extraction":
        """The settings with which a training scores its model."""
        return cls(height=height, width=width, embedding=settings.embedding, batch_size=settings.batch_size)


def embed_identities(
    model: TacafNet,
    index: ShardIndex,
    pids: np.ndarray,
    extraction: Extraction,
    place: Place,
    watched: Callable[[Iterable[Any], int], Iterable[Any]] | None = None,
) -> tuple[FeatureSet, np.ndarray]:
    """The features of every image of these identities, and their rows in the index; the same on every rank.

    `watched` wraps the batches (`Run.watched`); it is also given the number of batches that every rank has at least. If
    it raises, the model is unchanged.
    """
    rows = index.rows_of(pids)

    def embed(images_BCHW: torch.Tensor, modality: Modality) -> torch.Tensor:
        embedding_BD = model.embed(images_BCHW, modality, extraction.embedding)
        if extraction.flip:
            mirrored_BD = model.embed(images_BCHW.flip(3), modality, extraction.embedding)
            embedding_BD = torch.nn.functional.normalize(embedding_BD + mirrored_BD)
        return embedding_BD

    training = model.training
    model.eval()
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]] = EvaluationPipeline(
        index,
        rows,
        extraction.height,
        extraction.width,
        batch_size=extraction.batch_size,
        rank=place.rank,
        ranks=place.world_size,
        device_id=place.device_id,
    )
    if watched is not None:
        batches = watched(batches, math.ceil(len(rows) // place.world_size / extraction.batch_size))
    try:
        on_device = ((images.to(place.device), batch_rows) for images, batch_rows in batches)
        features = extract(embed, on_device, index.columns, rows)
    finally:
        model.train(training)
    return features, np.sort(rows)


def circumstances_of(
    card: ModelCard, split: str, extraction: Extraction, index: ShardIndex | None = None
) -> Circumstances:
    """What a result records besides its scores: split, embedding, flip, training set, model and seed."""
    trained_on: Facts = {"set": card.trained_on["set"], "sha256": card.trained_on["sha256"]}
    trained_on |= {"split": card.trained_on["split"], "model": card.chosen}
    if card.model.classifier.sampled:
        trained_on["negatives"] = card.model.classifier.negatives
    has_parts = card.model.ipcam.enabled and extraction.embedding != "global_only"
    return Circumstances(
        split=split,
        embedding=extraction.embedding,
        part_weight=card.model.ipcam.part_weight if has_parts else None,
        flip=extraction.flip,
        trained_on=trained_on,
        scored_on=None if index is None else {"set": index.name, "sha256": index.sha256},
        seed=card.seed,
    )
