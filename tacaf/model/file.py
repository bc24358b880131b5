"""model.safetensors: a trained TACAFNet's file, read back with what one must know to use it, from its metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from tacaf.images import GreyScale, scales_from
from tacaf.model.tacafnet import Embedding, ModelConfig, TacafNet
from tacaf.model.weights import CLASSIFIER, embedder
from tacaf.vocabulary import InputError, Modality

FORMAT = "tacaf-model"
FORMAT_VERSION = 2  # 2: classifiers in pieces


class ModelCard(NamedTuple):
    """What stands in the metadata of a model file."""

    model: ModelConfig
    identities: int
    height: int
    width: int
    trained_on: dict  # set, sha256 of its index, split
    seed: int
    chosen: str  # "last epoch" or "validation, epoch e"
    usual_embedding: Embedding = "full"  # the one the run was scored with; older files do not say
    scales: Mapping[Modality, GreyScale] = MappingProxyType(
        {}
    )  # of the training set: how grey of more than 8 bits becomes 8


def load_model(path: Path) -> tuple[TacafNet, ModelCard]:
    """The model of a file written by `save_model`, for `embed`, and its card. The classifiers stay in the file."""
    try:
        with safe_open(path, "pt") as file:
            card = json.loads((file.metadata() or {}).get("tacaf", "{}"))
            names = [name for name in file.keys() if CLASSIFIER not in name]  # noqa: SIM118 - safe_open is no dict
            state = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"expected a model file at {path}, got: {error}; a finished run has model.safetensors"
        ) from None
    if card.get("format") != FORMAT or card.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: expected format {FORMAT!r} {FORMAT_VERSION}, got {card.get('format')!r}"
            f" {card.get('format_version')}; export it again"
        )
    model = embedder(ModelConfig.model_validate(card["model"]), state)
    known = ModelCard._field_defaults | card
    keys = {key: known[key] for key in ModelCard._fields if key != "model"}
    keys["scales"] = scales_from(card.get("scales", {}), str(path))
    return model, ModelCard(model=model.config, **keys)
