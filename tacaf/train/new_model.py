"""Building a new model from the configuration, and the facts that are written into its file."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from tacaf.data.index import ShardIndex
from tacaf.files import shown
from tacaf.model.adapters import LibraryBackbone
from tacaf.model.backbone import BackboneConfig
from tacaf.model.efficientnet import EfficientNetLiteConfig
from tacaf.model.efficientnet_weights import efficientnet_file, load_efficientnet
from tacaf.model.library import LibraryConfig, check_weights
from tacaf.model.tacafnet import TacafNet
from tacaf.model.weights import NOT_A_RESNET, load_imagenet_resnet, load_tacafnet, refuse_unlikely
from tacaf.provenance import git_commit, versions
from tacaf.train.config import Config
from tacaf.vocabulary import InputError


class Start(NamedTuple):
    """What a new model's weights are loaded from."""

    kind: Literal["imagenet", "tacafnet", "transformers", "efficientnet_lite"]
    weights: str  # as the configuration names them: a path, a package or a name on the hub


def start_of(config: Config) -> Start | None:
    """The weights that a new model starts from, or None for random ones. A file under `train` comes first."""
    if config.train.weights:
        return Start("imagenet", str(config.train.weights))
    if config.train.start_from:
        return Start("tacafnet", str(config.train.start_from))
    backbone = config.model.backbone
    if isinstance(backbone, LibraryConfig | EfficientNetLiteConfig) and backbone.weights:
        return Start(backbone.kind, backbone.weights)
    return None


def build_model(config: Config, identities: int) -> tuple[TacafNet, str]:
    """A new model on the CPU, from the run's seed and the config's weights, and a line on what was loaded."""
    torch.manual_seed(config.seed)
    model = TacafNet(config.model, identities)
    start = start_of(config)
    if start is None:
        return model, "weights: from scratch"
    match start.kind:
        case "imagenet":
            report = load_imagenet_resnet(model, Path(start.weights))
        case "tacafnet":
            report = load_tacafnet(model, Path(start.weights))
        case "efficientnet_lite":
            report = load_efficientnet(model, start.weights)
        case "transformers":
            assert isinstance(model.backbone, LibraryBackbone)
            return model, model.backbone.load_weights()
    return model, str(report)


def describe_start(config: Config) -> str:
    """Where a new model's weights come from, for --dry-run, which loads none of them.

    Raises InputError if the file or the package is missing, or is clearly no file of weights. Weights of a backbone of
    transformers that would be downloaded are not looked for.
    """
    start, backbone = start_of(config), config.model.backbone
    if start is None:
        return "from scratch"
    if isinstance(backbone, LibraryConfig) and start.kind == "transformers":
        check_weights(backbone)
        return f"from {start.weights}"
    if start.kind == "imagenet" and not isinstance(backbone, BackboneConfig):
        raise InputError(NOT_A_RESNET)
    path = efficientnet_file(start.weights) if start.kind == "efficientnet_lite" else Path(start.weights)
    refuse_unlikely(path)
    return f"from {shown(path)}"


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
