"""model.safetensors: a trained TACAFNet with what one must know to use it, in the file's own metadata."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from launch.config import Config
from tacaf.data.index import ShardIndex
from tacaf.logs import git_commit, versions
from tacaf.model.adapters import LibraryBackbone
from tacaf.model.tacafnet import ModelConfig, TacafNet
from tacaf.model.weights import CLASSIFIER, embedder, load_imagenet_resnet, load_tacafnet
from tacaf.vocabulary import InputError

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


def build_model(config: Config, identities: int) -> tuple[TacafNet, str]:
    """A new model on CPU from the run's seed, with the weights the config names, and a line on what was loaded."""
    torch.manual_seed(config.seed)
    model = TacafNet(config.model, identities)
    if config.train.weights:
        return model, str(load_imagenet_resnet(model, config.train.weights))
    if config.train.start_from:
        return model, str(load_tacafnet(model, config.train.start_from))
    if isinstance(model.backbone, LibraryBackbone) and model.backbone.config.weights:
        return model, model.backbone.load_weights()
    return model, "weights: from scratch"


def save_model(
    path: Path, state: dict[str, torch.Tensor], config: Config, identities: int, index: ShardIndex, chosen: str
) -> None:
    """Write the model whole or not at all."""
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": config.model.portable().model_dump(mode="json"),
        "identities": identities,
        "height": config.data.augment.height,
        "width": config.data.augment.width,
        "trained_on": {"set": index.name, "sha256": index.sha256, "split": config.data.split},
        "seed": config.seed,
        "chosen": chosen,
        "versions": versions(),
        "commit": git_commit(),
    }
    temporary = path.with_name(f".{path.name}.tmp")
    tensors = {name: _alone(tensor.detach().cpu().contiguous()) for name, tensor in state.items()}
    save_file(tensors, temporary, {"tacaf": json.dumps(metadata)})
    temporary.chmod(0o644)  # safetensors writes files that only their owner can read
    temporary.rename(path)


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself where it has its storage for itself, as safetensors wants it; else a copy."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


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
    keys = {key: card[key] for key in ModelCard._fields if key != "model"}
    return model, ModelCard(model=model.config, **keys)
