"""Building a new model from the configuration, and the facts that are written into its file."""

from typing import Any

import torch

from tacaf.data.index import ShardIndex
from tacaf.model.adapters import LibraryBackbone
from tacaf.model.efficientnet import EfficientNetLite
from tacaf.model.efficientnet_weights import load_efficientnet
from tacaf.model.tacafnet import TacafNet
from tacaf.model.weights import load_imagenet_resnet, load_tacafnet
from tacaf.provenance import git_commit, versions
from tacaf.train.config import Config


def build_model(config: Config, identities: int) -> tuple[TacafNet, str]:
    """A new model on the CPU, from the run's seed and the config's weights, and a line on what was loaded."""
    torch.manual_seed(config.seed)
    model = TacafNet(config.model, identities)
    if config.train.weights:
        return model, str(load_imagenet_resnet(model, config.train.weights))
    if config.train.start_from:
        return model, str(load_tacafnet(model, config.train.start_from))
    if isinstance(model.backbone, LibraryBackbone) and model.backbone.config.weights:
        return model, model.backbone.load_weights()
    if isinstance(model.backbone, EfficientNetLite) and model.backbone.config.weights:
        return model, str(load_efficientnet(model, model.backbone.config.weights))
    return model, "weights: from scratch"


def model_facts(config: Config, identities: int, index: ShardIndex, chosen: str) -> dict[str, Any]:
    """The facts that `write_model` stores with the tensors of a model of this training.

    `chosen`: which epoch's model it is, "last epoch (e)" or "validation, epoch e".
    """
    return {
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
