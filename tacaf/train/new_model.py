"""A new model from the config, and the model file of a run: model.safetensors, which tacaf/model/file.py reads back."""

from pathlib import Path

import torch

from tacaf.data.index import ShardIndex
from tacaf.model.adapters import LibraryBackbone
from tacaf.model.file import write_model
from tacaf.model.tacafnet import TacafNet
from tacaf.model.weights import load_imagenet_resnet, load_tacafnet
from tacaf.provenance import git_commit, versions
from tacaf.train.config import Config


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
    facts = {
        "model": config.model.portable().model_dump(mode="json"),
        "identities": identities,
        "height": config.data.augment.height,
        "width": config.data.augment.width,
        "trained_on": {"set": index.name, "sha256": index.sha256, "split": config.data.split},
        "scales": {str(modality): scale.model_dump(mode="json") for modality, scale in index.scales.items()},
        "seed": config.seed,
        "chosen": chosen,
        "usual_embedding": config.evaluation.embedding,
        "versions": versions(),
        "commit": git_commit(),
    }
    write_model(path, state, facts)
