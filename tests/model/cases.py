"""What the model's tests share: tiny models and batches, and the scalar arithmetic of the slow loops.

B rows of the batch, M identities, K images per identity and modality; vectors are lists of floats.
"""

import math
from typing import Any

import torch

from tacaf.interfaces import Batch, ModelOutput, Pairs, Scores
from tacaf.model.pairs import draw_pairs
from tacaf.model.tacafnet import ModelConfig, TacafNet

IDENTITIES = 5


def tiny_config(**changes: Any) -> ModelConfig:
    """A model of width 4 with one block per stage; `changes` go over its sections: `cmaam={"enabled": False}`."""
    sections: dict[str, Any] = {
        "backbone": {"width": 4, "blocks": (1, 1, 1, 1)},
        "ipcam": {"node_width": 8, "attention_width": 4, "pair_width": 4},
        "cmaam": {},
    }
    for name, values in changes.items():
        sections[name] = sections.get(name, {}) | values if isinstance(values, dict) else values
    return ModelConfig.model_validate(sections)


def tiny_model(seed: int = 0, **changes: Any) -> TacafNet:
    torch.manual_seed(seed)
    return TacafNet(tiny_config(**changes), IDENTITIES)


def tiny_batch(
    identities: int = 4, images: int = 2, augmented: bool = True, pair_group: int = 2, seed: int = 0
) -> Batch:
    """A global batch as the data wing lays it out: branch-major, identities in order, images 96 x 32."""
    branches = (0, 1, 2) if augmented else (0, 2)
    rows = [(branch, label) for branch in branches for label in range(identities) for _ in range(images)]
    branch_B, label_B = torch.tensor(rows).unbind(1)
    count = len(rows)
    draw = torch.Generator().manual_seed(seed)
    return Batch(
        images_BCHW=torch.randn(count, 3, 96, 32, generator=draw),
        label_B=label_B.clone(),
        branch_B=branch_B.clone(),
        group_B=label_B // pair_group,
        position_B=torch.arange(count),
        row_B=torch.arange(count),
        visible=int((branch_B != 2).sum()),
        epoch=0,
        step=0,
    )


def assert_every_gradient(model: torch.nn.Module) -> None:
    """Every parameter that learns has a gradient that is finite and not zero."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} has no gradient"
            assert torch.isfinite(parameter.grad).all(), f"{name} has a gradient that is not finite"
            assert parameter.grad.any(), f"{name} has a zero gradient"


def pairs_of(batch: Batch, layer: Any = 4, seed: int = 0, direction: Any = "both") -> Pairs:
    columns = (batch.label_B, batch.branch_B, batch.group_B, batch.position_B)
    return draw_pairs(*columns, seed=seed, epoch=batch.epoch, step=batch.step, layer=layer, direction=direction)


def train_forward(model: TacafNet, batch: Batch) -> ModelOutput:
    """One training forward with exactly the pairs the configuration asks for."""
    direction = model.config.cmaam.direction
    pairs = {f"pairs{layer}": pairs_of(batch, layer, direction=direction) for layer in model.config.pair_layers}
    return model(batch.images_BCHW, batch.label_B, batch.visible, **pairs)


def randomise_norms(module: torch.nn.Module) -> None:
    """Weights, biases and running statistics away from 1 and 0, so that leaving one out shows."""
    for part in module.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            for tensor in (part.weight.data, part.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (part.bias.data, part.running_mean):
                tensor.uniform_(-0.3, 0.3)


def scores_of(logits: list[list[float]], labels: list[int]) -> Scores:
    """Log-probability of each row's own identity, and the mean over all, from scalar logits; float64."""
    rows = [[math.log(p) for p in softmax(row)] for row in logits]
    own = [row[label] for row, label in zip(rows, labels, strict=True)]
    means = [sum(row) / len(row) for row in rows]
    return Scores(torch.tensor(own, dtype=torch.float64), torch.tensor(means, dtype=torch.float64))


def dot(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def length(x: list[float]) -> float:
    return math.sqrt(dot(x, x))


def linear(weight: torch.Tensor, x: list[float]) -> list[float]:
    return [dot(row, x) for row in weight.tolist()]


def softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / sum(powers) for power in powers]


def mix(weights: list[float], vectors: list[list[float]]) -> list[float]:
    """sum_j weight_j * vector_j"""
    return [dot(weights, list(column)) for column in zip(*vectors, strict=True)]


def minmax(x: list[float]) -> list[float]:
    return [(v - min(x)) / (max(x) - min(x) + 1e-12) for v in x]


def relu_bn(norm: torch.nn.modules.batchnorm._BatchNorm, rows: list[list[float]], relu: bool = True) -> list:
    """ReLU of the batch norm over `rows`: their own statistics in training, the running ones in evaluation."""
    state = zip(*(x.tolist() for x in (norm.running_mean, norm.running_var, norm.weight, norm.bias)), strict=True)
    columns = []
    for column, (mean, variance, scale, shift) in zip(zip(*rows, strict=True), state, strict=True):
        if norm.training:
            mean = sum(column) / len(column)
            variance = sum((v - mean) ** 2 for v in column) / len(column)
        values = [(v - mean) / math.sqrt(variance + norm.eps) * scale + shift for v in column]
        columns.append([max(0.0, v) for v in values] if relu else values)
    return [list(row) for row in zip(*columns, strict=True)]
