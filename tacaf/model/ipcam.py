"""IPCAM, the image pair correlation attention: a graph over body parts, and in training a stage across modalities.

Paper §3; the exact reading is method §5. B images, P pairs, N nodes (10 for levels 1/3/6: global, coarse, fine),
R fine parts, C map channels, D node width, A attention width, I identities. Everything here runs in float32: it is
under one per cent of the backbone's work, and its softmaxes and norms want it.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn
from torch.autograd.function import once_differentiable

from kernels.common.path import Backend
from kernels.ring_aggregate import ring_aggregate
from tacaf.interfaces import Scores
from tacaf.model.classifier import Classifier
from tacaf.model.head import CLASSIFIER_STD, bn_neck, build_classifier, new_range_classifier
from tacaf.model.identities import StepIdentities
from tacaf.model.norm import BatchNorm1d, NormMode
from tacaf.settings import Settings


class IpcamConfig(Settings):
    """Part levels, widths and the switches for ablation. The paper names no number: they are ours (method §5)."""

    enabled: bool = Field(True, description="Build IPCAM; without it the embedding is the global feature alone.")
    levels: tuple[Annotated[int, Field(ge=1, le=256)], ...] = Field(
        (1, 3, 6),
        max_length=8,
        description=(
            "Stripes per level: 1 (global) first, the finest level last; the height of the map must be divisible by it."
        ),
    )
    node_width: int = Field(512, ge=1, le=2**16, description="Width D of a node.")
    attention_width: int = Field(128, ge=1, le=2**16, description="Width A of the attention projections.")
    pair_width: int = Field(256, ge=1, le=2**16, description="Compressed width at the end of the pair stage.")
    rounds: int = Field(2, ge=1, le=100, description="Rounds of the cyclic neighbour aggregation.")
    ring: bool = Field(True, description="Run the cyclic aggregation over the fine parts (the graph keeps its edges).")
    self_connection: bool = Field(True, description="Add the fine parts as they were after the last round.")
    pair_stage: bool = Field(True, description="Train with the cross-modal pair stage; never run at test time.")
    temperature: float = Field(
        0.1, gt=0, le=1e6, description="Temperature of the pair stage's part matching (divides)."
    )
    classifiers: Literal["each", "shared", "global"] = Field(
        "each",
        description=(
            "How nodes are classified in training: each by its own classifier, all by one shared, or the global node"
            " alone. The last two are for data sets of many identities; pair_stage has one more classifier."
        ),
    )
    part_weight: float = Field(
        1.0,
        gt=0,
        le=1e3,
        description=(
            "Weight of the nodes in an embedding, where the global feature has 1; a cosine similarity counts them with"
            " its square (ours)."
        ),
    )

    @model_validator(mode="after")
    def _nested_levels(self) -> "IpcamConfig":
        levels = self.levels
        rising = all(a < b for a, b in pairwise(levels))
        nested = all(a > 0 and b % a == 0 for a, b in pairwise(levels))
        if len(levels) < 2 or levels[0] != 1 or not rising or not nested:
            raise ValueError(
                f"levels: expected 1 first, then rising counts that divide one another, got {list(levels)}; "
                "take for example [1, 3, 6], [1, 2, 6] or [1, 6]"
            )
        if self.ring and levels[-1] < 3:
            raise ValueError(
                f"ring: expected at least 3 fine parts, got {levels[-1]}; take a larger last level or ring: false"
            )
        return self

    @property
    def nodes(self) -> int:
        return sum(self.levels)

    @property
    def classified_nodes(self) -> int:
        """How many nodes, from the global one on, are classified in training."""
        return 1 if self.classifiers == "global" else self.nodes


def graph_mask(levels: tuple[int, ...]) -> torch.Tensor:
    """Which node may attend to which, bool N x N, symmetric: self, rings in a level, containment, star of the global.

    Nodes are numbered coarse to fine. 58 edges for levels 1/3/6 (method §5.3).
    """
    mask = torch.eye(sum(levels), dtype=torch.bool)
    mask[0, :] = mask[:, 0] = True
    starts = [sum(levels[:i]) for i in range(len(levels))]
    for level, start in zip(levels, starts, strict=True):
        for part in range(level):
            neighbour = start + (part + 1) % level
            mask[start + part, neighbour] = mask[neighbour, start + part] = True
    for i in range(1, len(levels) - 1):
        for part in range(levels[i + 1]):
            whole, inner = starts[i] + part * levels[i] // levels[i + 1], starts[i + 1] + part
            mask[whole, inner] = mask[inner, whole] = True
    return mask


def _rows_norm(norm: BatchNorm1d, values_BND: torch.Tensor) -> torch.Tensor:
    """ReLU(BN(x)) with the statistics over images and nodes together."""
    return torch.unflatten(F.relu(norm(values_BND.flatten(0, 1))), 0, values_BND.shape[:2])


class Ipcam(nn.Module):
    """Stages 1-3: the pooled stripes of each level, B x n x C, to nodes n', B x N x D float32. Runs at test time too.

    backend: as `kernels.ring_aggregate`.
    """

    def __init__(self, config: IpcamConfig, width: int, norm: NormMode, backend: Backend = "auto") -> None:
        super().__init__()
        self.config = config
        self.backend: Backend = backend
        inner = config.node_width
        self.embed = nn.ModuleList(nn.Linear(width, inner, bias=False) for _ in config.levels)
        self.embed_norm = nn.ModuleList(BatchNorm1d(inner, norm) for _ in config.levels)
        self.theta = nn.Linear(inner, config.attention_width, bias=False)
        self.phi = nn.Linear(inner, config.attention_width, bias=False)
        self.graph_weight = nn.Linear(inner, inner, bias=False)
        self.graph_norm = BatchNorm1d(inner, norm)
        bias_NN = torch.zeros(config.nodes, config.nodes).masked_fill(~graph_mask(config.levels), -torch.inf)
        self.register_buffer("bias_NN", bias_NN, persistent=False)

    def forward(self, stripes: Sequence[torch.Tensor]) -> torch.Tensor:
        with torch.autocast(stripes[0].device.type, enabled=False):
            levels = self._parts([stripe.float() for stripe in stripes])
            # Both projections of both stages are made of one matrix: one product in place of two.
            projection = torch.cat([self.theta.weight, self.phi.weight])
            if self.config.ring:
                levels[-1] = self._cyclic(levels[-1], projection)
            return self._graph(torch.cat(levels, dim=1), projection)

    def _parts(self, stripes: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Stage 1: one embedding per level, shared by its stripes."""
        steps = zip(self.embed, self.embed_norm, stripes, strict=True)
        return [_rows_norm(cast(BatchNorm1d, norm), embed(stripe)) for embed, norm, stripe in steps]

    def _cyclic(self, fine_BRD: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
        """Stage 2: rounds of attention to the two neighbours on the ring, then the self-connection once."""
        theta_BRA, phi_BRA = F.linear(fine_BRD, projection).chunk(2, dim=-1)
        mixed_BRD = ring_aggregate(fine_BRD, theta_BRA, phi_BRA, self.config.rounds, self.backend)
        return mixed_BRD + fine_BRD if self.config.self_connection else mixed_BRD

    def _graph(self, nodes_BND: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
        """Stage 3: masked attention over all nodes, the paper's square weight matrix, and a residual."""
        theta_BNA, phi_BNA = F.linear(nodes_BND, projection).chunk(2, dim=-1)
        scale, bias_NN = 1 / math.sqrt(self.config.attention_width), cast(torch.Tensor, self.bias_NN)
        attention_BNN = torch.add(bias_NN, theta_BNA @ phi_BNA.mT, alpha=scale).softmax(dim=-1)
        return nodes_BND + _rows_norm(self.graph_norm, self.graph_weight(attention_BNN @ nodes_BND))


class NodeHead(nn.Module):
    """A BNNeck and a classifier for each classified node: n' B x N x D to scores N x B. Training only."""

    def __init__(self, config: IpcamConfig, identities: int, norm: NormMode, chunk: int, split: bool = False) -> None:
        """split: keep only this rank's range of the classifiers."""
        super().__init__()
        self.count = config.classified_nodes
        # One norm over N*D channels is N norms over D; one stacked weight makes the classifiers one batched product.
        self.neck = bn_neck(self.count * config.node_width, norm)
        stack = (self.count,) if config.classifiers == "each" else ()
        self.classifier: nn.Module
        if split:
            self.classifier = new_range_classifier("nodes", (*stack, config.node_width), identities, chunk)
        else:
            weight = torch.empty(*stack, identities, config.node_width)
            self.classifier = Classifier(nn.init.normal_(weight, std=CLASSIFIER_STD), chunk)

    def forward(self, nodes_BND: torch.Tensor, label_B: torch.Tensor, used: StepIdentities | None = None) -> Scores:
        """used: the identities that the step uses, where they are not all."""
        with torch.autocast(nodes_BND.device.type, enabled=False):
            nodes_BND = nodes_BND[:, : self.count]
            necked_BND = self.neck(nodes_BND.flatten(1)).unflatten(1, nodes_BND.shape[1:])
            scores: Scores = self.classifier(necked_BND.transpose(0, 1), label_B, used)
            return scores


class _Unit(torch.autograd.Function):
    """Vectors along the last dimension divided by their length, as `F.normalize`, with a quarter of its launches."""

    @staticmethod
    def forward(ctx: Any, vectors: torch.Tensor) -> torch.Tensor:
        length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_min(1e-12)
        unit = vectors / length
        ctx.save_for_backward(unit, length)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        """What lies along a vector does not turn it. (Vectors of length 0 are divided by a constant; theirs is 0.)"""
        unit, length = ctx.saved_tensors
        along = (gradient * unit).sum(dim=-1, keepdim=True)
        return torch.addcmul(gradient, unit, along, value=-1).div_(length)


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    """A compiler fuses the usual formula, and does not trace a gradient of our own without a warning."""
    if torch.compiler.is_compiling():
        return F.normalize(vectors, dim=-1)
    unit: torch.Tensor = _Unit.apply(vectors)
    return unit


class PairStage(nn.Module):
    """Stage 4, training only: the parts of a visible image and of its infrared positive, each rebuilt from the other's.

    It needs a partner of known identity, so at test time it would leak labels: it is never run there (method §5.6).
    """

    def __init__(self, config: IpcamConfig, identities: int, norm: NormMode, chunk: int, split: bool = False) -> None:
        """split: keep only this rank's range of the classifier."""
        super().__init__()
        self.temperature = config.temperature
        self.cross_weight = nn.Linear(config.node_width, config.node_width, bias=False)
        self.cross_norm = BatchNorm1d(config.node_width, norm)
        self.compress = nn.Linear(config.node_width, config.pair_width, bias=False)
        self.compress_norm = BatchNorm1d(config.pair_width, norm)
        self.classifier = build_classifier("pairs", config.pair_width, identities, chunk, split)

    def forward(
        self,
        fine_BRD: torch.Tensor,
        visible_P: torch.Tensor,
        infrared_P: torch.Tensor,
        label_P: torch.Tensor,
        used: StepIdentities | None = None,
    ) -> Scores:
        """Fine nodes of n', each pair's rows and label to the scores of its visible and its infrared side, 2 x P.

        Both sides go through every operation together. `other` holds what they are rebuilt from: infrared parts first.
        used: the identities that the step uses, where they are not all.
        """
        with torch.autocast(fine_BRD.device.type, enabled=False):
            other_2PRD = fine_BRD[torch.cat([infrared_P, visible_P])]
            infrared_PRD, visible_PRD = _unit(other_2PRD).chunk(2)
            similarity_PRR = visible_PRD @ infrared_PRD.mT / self.temperature
            matching_2PRR = torch.cat([similarity_PRR, similarity_PRR.mT]).softmax(dim=-1)
            crossed = _rows_norm(self.cross_norm, self.cross_weight(matching_2PRR @ other_2PRD))
            compressed = _rows_norm(self.compress_norm, self.compress(crossed))
            scores: Scores = self.classifier(compressed.mean(dim=1).unflatten(0, (2, -1)), label_P, used)
            return scores
