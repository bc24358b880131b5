"""TacafNet: backbone, head, CMAAM and IPCAM as one model. Without the last two, it is the AGW/LbA baseline.

B images of a rank, visible first, C channels, H x W, N stripes or nodes, I identities.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn
from torch.utils.checkpoint import checkpoint

from tacaf import distributed
from tacaf.interfaces import Alignment, ModelOutput, Pairs, Scores, StepKey
from tacaf.model.adapters import AnyBackboneConfig, build_backbone, map_size, stride
from tacaf.model.backbone import BackboneConfig
from tacaf.model.classifier import ClassifierConfig
from tacaf.model.cmaam import CmaamConfig, align
from tacaf.model.efficientnet import EfficientNetLiteConfig
from tacaf.model.head import Head
from tacaf.model.identities import IdentityRange, StepIdentities, step_identities
from tacaf.model.ipcam import Ipcam, IpcamConfig, NodeHead, PairStage
from tacaf.model.library import STAGED, TOKENS, LibraryConfig, portable
from tacaf.model.norm import NormMode, own_statistics
from tacaf.model.pooling import gem
from tacaf.settings import Settings
from tacaf.vocabulary import Embedding, InputError, Modality


class ModelConfig(Settings):
    """The whole model. Only enabled modules are built."""

    backbone: AnyBackboneConfig = Field(
        BackboneConfig(), description="The two-stem ResNet, EfficientNet-Lite0, or a backbone of transformers."
    )
    cmaam: CmaamConfig = Field(CmaamConfig(), description="Cross-modal alignment, only in training.")
    ipcam: IpcamConfig = Field(IpcamConfig(), description="Part graph and pair stage.")
    bn: NormMode = Field(
        "sync", description="Batch statistics. sync: over all ranks, equal to one process; local: each rank's own."
    )
    kernels: Literal["auto", "reference"] = Field(
        "auto",
        description=(
            "Kernels of the training. auto: the fast kernels, Triton on a GPU and plain PyTorch on a CPU; reference:"
            " every operation by its definition, for comparisons. Model files do not depend on it, and a trained model"
            " is always scored and used with auto."
        ),
    )
    fused_norm: bool = Field(
        False,
        description=(
            "In training, run each batch norm of a ResNet together with its residual sum and ReLU (kernels/batch_norm)."
            " On a GPU it makes a step faster only together with train.cuda_graph; without a graph it makes it slower,"
            " because the host launches more kernels. torch.compile fuses them itself, and on a CPU it is slower."
        ),
    )
    chunk: int = Field(
        65536,
        ge=1,
        le=2**40,
        description=(
            "Identities that a classifier computes at once. More identities are computed in several chunks, with the"
            " same result, less memory and more work."
        ),
    )

    classifier: ClassifierConfig = Field(ClassifierConfig(), description="How the classifiers are stored.")

    @property
    def split(self) -> bool:
        """Whether each rank keeps a range of identities of every classifier."""
        return self.classifier.sharding == "identities"

    def unsplit(self) -> "ModelConfig":
        """The same model with whole classifiers, for using it and for counting its parameters."""
        return self.model_copy(update={"classifier": ClassifierConfig()})

    @property
    def pair_layers(self) -> tuple[Literal[3, 4], ...]:
        """The layers whose pairs the model needs in training; `cmaam.direction` is their direction (method §5.4)."""
        layers: set[Literal[3, 4]] = set(self.cmaam.layers) if self.cmaam.enabled else set()
        if self.ipcam.enabled and self.ipcam.pair_stage:
            layers.add(4)
        return tuple(sorted(layers))

    @model_validator(mode="after")
    def _fuses(self) -> "ModelConfig":
        if self.fused_norm and not isinstance(self.backbone, BackboneConfig):
            raise ValueError(
                f"fused_norm: expected backbone.kind: resnet, got {self.backbone.kind}; set model.fused_norm: false"
            )
        if self.fused_norm and self.kernels == "reference":
            raise ValueError(
                "fused_norm: expected kernels: auto, got reference, under which no fast kernel runs; set"
                " model.fused_norm: false"
            )
        return self

    @model_validator(mode="after")
    def _reenters(self) -> "ModelConfig":
        again = self.cmaam.enabled and self.cmaam.consistency and 3 in self.cmaam.layers
        if again and isinstance(self.backbone, LibraryConfig) and not self.backbone.reenters:
            raise ValueError(
                "cmaam.consistency: expected a backbone that can continue from a layer-3 map (the ResNet,"
                f" {', '.join(STAGED + TOKENS)}), got {self.backbone.name}; set model.cmaam.consistency: false or"
                " model.cmaam.layers: [4]"
            )
        return self

    def portable(self) -> "ModelConfig":
        """The same model for the card of a model file: it depends on no other file and uses the default kernels."""
        backbone = self.backbone
        if isinstance(backbone, LibraryConfig):
            backbone = portable(backbone)
        elif isinstance(backbone, EfficientNetLiteConfig):
            backbone = backbone.model_copy(update={"weights": None})
        return self.model_copy(update={"backbone": backbone, "kernels": "auto", "fused_norm": False})

    def check_input(self, height: int, width: int) -> None:
        """Raise InputError unless the layer-4 map of such an image divides into the part levels."""
        rows, _ = map_size(self.backbone, height, width)
        if not self.ipcam.enabled or (rows > 0 and rows % self.ipcam.levels[-1] == 0):
            return
        step = stride(self.backbone) * self.ipcam.levels[-1]
        nearest = step * max(1, round(height / step))
        raise InputError(
            f"expected an image height whose layer-4 map divides into the part levels {list(self.ipcam.levels)}, got "
            f"height {height} with a map of {rows} rows; use height {nearest}, or other model.ipcam.levels"
        )


class TacafNet(nn.Module):
    """The model. `forward` is a training pass and returns what the losses need; `embed` returns descriptors."""

    def __init__(self, config: ModelConfig, identities: int) -> None:
        super().__init__()
        self.config = config
        self.identities = identities
        self.backbone = build_backbone(config.backbone, config.bn, config.fused_norm)
        self.width = self.backbone.width
        self.head = Head(self.width, identities, config.bn, config.chunk, config.split)
        self.ipcam: Ipcam | None = None
        self.node_head: NodeHead | None = None
        self.pair_stage: PairStage | None = None
        if config.ipcam.enabled:
            self.ipcam = Ipcam(config.ipcam, self.width, config.bn, config.kernels)
            self.node_head = NodeHead(config.ipcam, identities, config.bn, config.chunk, config.split)
            if config.ipcam.pair_stage:
                self.pair_stage = PairStage(config.ipcam, identities, config.bn, config.chunk, config.split)

    def forward(
        self,
        images_BCHW: torch.Tensor,
        label_B: torch.Tensor,
        visible: int,
        pairs3: Pairs | None = None,
        pairs4: Pairs | None = None,
        key: StepKey | None = None,
    ) -> ModelOutput:
        """A training pass over a batch whose first `visible` rows are visible images.

        Classifiers need the labels because with many identities they return scores, never all logits (`classifier.py`).
        `pairs3` and `pairs4` are the draws for `ModelConfig.pair_layers` (`pairs.draw_pairs`). `key` draws the
        classifiers' negatives, if the configuration wants a sample of them.
        """
        layer3_BCHW, layer4_BCHW = self.backbone(images_BCHW, visible)
        stripes = self._stripes(layer4_BCHW, self.ipcam is not None)
        pooled_BC = stripes[0].squeeze(1)
        # Collected first and built once, because torch.compile of PyTorch 2.11 fails on a NamedTuple's _replace.
        used = self._used(label_B, key)
        outputs: dict[str, Any] = {}
        rebuilt: list[tuple[torch.Tensor, torch.Tensor]] = []
        if self.config.cmaam.enabled:
            maps = {3: (layer3_BCHW, pairs3), 4: (layer4_BCHW, pairs4)}
            chosen = [(layer, *maps[layer]) for layer in self.config.cmaam.layers]
            outputs["alignments"], rebuilt = self._align(chosen, label_B, visible)
        outputs |= self._classify(pooled_BC, label_B, rebuilt, used)
        if self.ipcam is not None:
            outputs |= self._correlate(stripes, label_B, visible, pairs4, used)
        return ModelOutput(pooled_BC=pooled_BC, **outputs)

    def _used(self, label_B: torch.Tensor, key: StepKey | None) -> StepIdentities | None:
        """The identities that this step's classifiers use; None: all."""
        if not self.config.classifier.sampled:
            return None
        assert key is not None, "the negatives are drawn by the step"
        own = IdentityRange.of_rank(self.identities, distributed.rank(), distributed.world_size())
        return step_identities(self.config.classifier.negatives, own, label_B, key)

    def _stripes(self, layer4_BCHW: torch.Tensor, every: bool) -> Sequence[torch.Tensor]:
        """The pooled stripes of every level, or of the first alone, which is the whole map: B x n x C each."""
        levels = self.config.ipcam.levels if every else (1,)
        return gem(layer4_BCHW, levels, self.config.kernels).split(list(levels), dim=1)

    def _align(
        self, maps: Sequence[tuple[int, torch.Tensor, Pairs | None]], label_B: torch.Tensor, visible: int
    ) -> tuple[tuple[Alignment, ...], list[tuple[torch.Tensor, torch.Tensor]]]:
        """CMAAM on each chosen layer: the alignments, and the pooled reconstructions to classify, with their labels."""
        alignments, rebuilt = [], []
        for layer, features_BCHW, pairs in maps:
            assert pairs is not None, f"CMAAM on layer {layer} needs the pairs of that layer"
            reconstruction_NCHW, alignment = align(
                self.config.cmaam, features_BCHW, pairs, visible, self.config.kernels
            )
            alignments.append(alignment)
            if self.config.cmaam.consistency:
                rebuilt.append((self._pool_reconstruction(reconstruction_NCHW, layer), label_B[pairs.anchor_N]))
        return tuple(alignments), rebuilt

    def _classify(
        self,
        pooled_BC: torch.Tensor,
        label_B: torch.Tensor,
        rebuilt: list[tuple[torch.Tensor, torch.Tensor]],
        used: StepIdentities | None,
    ) -> dict[str, Scores]:
        """The head's scores of the images and of the layers' reconstructions, of which each layer has as many."""
        scores: Scores = self.head(pooled_BC, label_B, rebuilt, used)
        if not rebuilt:
            return {"scores": scores}
        sizes = [len(label_B), sum(len(label_N) for _, label_N in rebuilt)]
        (own_B, own), (mean_B, mean) = (part.split(sizes) for part in scores)
        stacked = Scores(own.unflatten(0, (len(rebuilt), -1)), mean.unflatten(0, (len(rebuilt), -1)))
        return {"scores": Scores(own_B, mean_B), "consistency_scores": stacked}

    def _pool_reconstruction(self, reconstruction_NCHW: torch.Tensor, layer: int) -> torch.Tensor:
        """Layer 3 re-enters layer 4, layer 4 is pooled as it is: N x C."""
        if layer == 3 and self.config.cmaam.recompute:
            reconstruction_NCHW = checkpoint(
                self._reenter, reconstruction_NCHW, use_reentrant=False, preserve_rng_state=False, early_stop=False
            )  # early_stop: see classifier.py
        elif layer == 3:
            reconstruction_NCHW = self._reenter(reconstruction_NCHW)
        return gem(reconstruction_NCHW, backend=self.config.kernels).squeeze(1)

    def _reenter(self, reconstruction_NCHW: torch.Tensor) -> torch.Tensor:
        with own_statistics(self.backbone):  # inside, so that it applies to a recomputation too
            return self.backbone.layer4(reconstruction_NCHW)

    def _correlate(
        self,
        stripes: Sequence[torch.Tensor],
        label_B: torch.Tensor,
        visible: int,
        pairs4: Pairs | None,
        used: StepIdentities | None,
    ) -> dict[str, Any]:
        """IPCAM: node scores, and the pair stage on the visible anchors of the layer-4 draw."""
        assert self.ipcam is not None
        assert self.node_head is not None
        nodes_BND = self.ipcam(stripes)
        outputs: dict[str, Any] = {"node_scores": self.node_head(nodes_BND, label_B, used)}
        if self.pair_stage is not None:
            assert pairs4 is not None, "IPCAM's pair stage needs the pairs of layer 4"
            # Anchors ascend by row, and every visible row is one, so the first `visible` pairs are those of V0 and V1.
            anchor_P, positive_P = pairs4.anchor_N[:visible], pairs4.positive_N[:visible]
            fine_BRD = nodes_BND[:, -self.config.ipcam.levels[-1] :]
            outputs["pair_scores"] = self.pair_stage(fine_BRD, anchor_P, positive_P, label_B[anchor_P], used)
        return outputs

    def embed(self, images_BCHW: torch.Tensor, modality: Modality, embedding: Embedding = "full") -> torch.Tensor:
        """Descriptors of images of one modality: B x `embedding_width(embedding)` float32 of length 1 (method §5.6).

        full: concat[L2(BN(GeM)), w L2(n'_g), w L2(the other nodes)], L2 again, where w is `ipcam.part_weight`;
        global_and_parts leaves out n'_g (ours, because it is the weaker of two global features and takes a third of the
        weight); global_only, or any without IPCAM, is the first part. Compare them by cosine. The model must be in
        evaluation mode.
        """
        assert not self.training, "embed uses running statistics: call eval() first"
        whole = embedding != "global_only" and self.ipcam is not None
        # `shape` and not `len`, so that an exported graph accepts any batch size
        visible = images_BCHW.shape[0] if modality is Modality.VISIBLE else 0
        _, layer4_BCHW = self.backbone(images_BCHW, visible)
        stripes = self._stripes(layer4_BCHW, whole)
        global_BC = F.normalize(self.head.neck(stripes[0].squeeze(1)).float())
        if not whole:
            return global_BC
        assert self.ipcam is not None
        nodes_BND = self.ipcam(stripes)
        parts = [F.normalize(nodes_BND[:, 0])] if embedding == "full" else []
        parts.append(F.normalize(nodes_BND[:, 1:].flatten(1)))
        weight = self.config.ipcam.part_weight
        return F.normalize(torch.cat([global_BC, *(weight * part for part in parts)], dim=1))

    def embedding_width(self, embedding: Embedding = "full") -> int:
        """The width of descriptors. The default model's: full 7168, without n'_g 6656, only the global feature 2048."""
        if embedding == "global_only" or self.ipcam is None:
            return self.width
        nodes = self.config.ipcam.nodes - (embedding == "global_and_parts")
        return self.width + nodes * self.config.ipcam.node_width

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that may be loaded from ImageNet weights and have the lower learning rate."""
        return (parameter for parameter in self.backbone.parameters() if parameter.requires_grad)

    def new_parameters(self) -> Iterator[nn.Parameter]:
        """All other trainable parameters: neck, classifiers, IPCAM."""
        named = self.named_parameters()
        return (value for name, value in named if value.requires_grad and not name.startswith("backbone."))
