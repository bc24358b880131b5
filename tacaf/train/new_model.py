"""Building a new model from the configuration, and the facts that are written into its file."""

from typing import Any

import torch

from tacaf.data.index import ShardIndex
from tacaf.files import shown
from tacaf.model.adapters import LibraryBackbone
from tacaf.model.backbone import BackboneConfig
from tacaf.model.efficientnet import EfficientNetLite, EfficientNetLiteConfig
from tacaf.model.efficientnet_weights import efficientnet_file, load_efficientnet
from tacaf.model.library import LibraryConfig
from tacaf.model.tacafnet import TacafNet
from tacaf.model.weights import NOT_A_RESNET, load_imagenet_resnet, load_tacafnet, refuse_unlikely
from tacaf.provenance import git_commit, versions
from tacaf.train.config import Config
from tacaf.vocabulary import InputError


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


def describe_start(config: Config) -> str:
    """Where a new model's weights come from, for --dry-run, which loads none of them.

    Raises InputError if the file or the package is missing, or is clearly no file of weights. Weights of a backbone of
    transformers are not looked for.
    """
    backbone, path = config.model.backbone, config.train.weights or config.train.start_from
    if config.train.weights and not isinstance(backbone, BackboneConfig):
        raise InputError(NOT_A_RESNET)
    if path is None and isinstance(backbone, EfficientNetLiteConfig) and backbone.weights:
        path = efficientnet_file(backbone.weights)
    if path is not None:
        refuse_unlikely(path)
        return f"from {shown(path)}"
    if isinstance(backbone, LibraryConfig) and backbone.weights:
        return f"from {backbone.weights}"
    return "from scratch"


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
