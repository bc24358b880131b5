"""A new model from the config, and the model file of a run: model.safetensors, which tacaf/model/file.py reads back."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from launch.config import Config
from tacaf.data.index import ShardIndex
from tacaf.files import whole_path
from tacaf.logs import git_commit, versions
from tacaf.model.adapters import LibraryBackbone
from tacaf.model.file import FORMAT, FORMAT_VERSION
from tacaf.model.tacafnet import TacafNet
from tacaf.model.weights import load_imagenet_resnet, load_tacafnet


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
        "usual_embedding": config.evaluation.embedding,
        "versions": versions(),
        "commit": git_commit(),
    }
    tensors = {name: _alone(tensor.detach().cpu().contiguous()) for name, tensor in state.items()}
    with whole_path(path) as made:
        save_file(tensors, made, {"tacaf": json.dumps(metadata)})


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself where it has its storage for itself, as safetensors wants it; else a copy."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
