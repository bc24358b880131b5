"""The total training loss (method §6): the weighted sum of every term that the model's output allows.

L = identity + triplet + ic * consistency + dt * dense triplet + part * nodes + pair * pair stage.
"""

import torch
from pydantic import Field

from tacaf.interfaces import Alignment, ModelOutput
from tacaf.losses.dense_triplet import DenseUnit, dense_triplet_loss
from tacaf.losses.identity import identity_losses
from tacaf.losses.triplet import TripletKind, TripletUnit, triplet_loss
from tacaf.settings import Settings


class LossConfig(Settings):
    """Weights and margins of the loss. Weights of disabled modules have no effect."""

    ic: float = Field(
        1.0, ge=0, le=1e6, description="Weight of CMAAM's identity consistency, on each layer (1 in LbA)."
    )
    dt: float = Field(
        0.5, ge=0, le=1e6, description="Weight of CMAAM's dense triplet, summed over layers (0.5 in LbA)."
    )
    dense_margin: float = Field(0.3, ge=0, le=1e6, description="Margin of the dense triplet (LbA).")
    dense_unit: DenseUnit = Field(
        "absolute",
        description=(
            "Unit of the dense triplet. absolute: none (LbA); margin: the margin is in units of the batch's mean"
            " distance; distance: the distances are in that unit too, so that the term does not depend on the scale of"
            " the features (ours)."
        ),
    )
    triplet: TripletKind = Field(
        "batch_hard", description="batch_hard: margin triplet (LbA); wrt: weighted (AGW); adp: adaptive (CAJ)."
    )
    margin: float = Field(0.3, ge=0, le=1e6, description="Margin of the batch-hard triplet (LbA).")
    triplet_unit: TripletUnit = Field(
        "absolute",
        description=(
            "Unit of the triplet's distances. absolute: none (as in AGW, LbA and CAJ); distance: the batch's mean"
            " distance, so that neither the term nor its margin depends on the scale of the features, which pretraining"
            " changes (ours)."
        ),
    )
    part: float = Field(1.0, gt=0, le=1e6, description="Weight of the mean cross-entropy over IPCAM's nodes.")
    pair: float = Field(
        1.0,
        gt=0,
        le=1e6,
        description="Weight of IPCAM's pair stage; to train without it, set model.ipcam.pair_stage: false.",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Label smoothing of every cross-entropy (0 in LbA).")

    @property
    def weights(self) -> dict[str, float]:
        """Term of the loss -> its weight. Terms that are not listed have weight 1."""
        return {"consistency": self.ic, "dense_triplet": self.dt, "part": self.part, "pair": self.pair}


class TacafLoss:
    """Computes the loss and its terms from the model's training output and the batch's labels."""

    def __init__(self, config: LossConfig) -> None:
        self.config = config

    def __call__(self, output: ModelOutput, label_B: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss, and every term without its weight, detached; all are float32 scalars."""
        terms = self.terms(output, label_B)
        weights = {name: self.config.weights.get(name, 1.0) for name in terms}
        # A product with 1 would launch two kernels that change nothing.
        total = torch.stack(
            [term if weights[name] == 1 else weights[name] * term for name, term in terms.items()]
        ).sum()
        return total, {name: term.detach() for name, term in terms.items()}

    def terms(self, output: ModelOutput, label_B: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every term that the output allows, without its weight and with its gradient; float32 scalars."""
        config = self.config
        terms = self._classified(output)
        triplet = triplet_loss(output.pooled_BC, label_B, config.margin, config.triplet, config.triplet_unit)
        terms["triplet"] = triplet
        if output.alignments and config.dt > 0:
            dense = [
                dense_triplet_loss(each, config.dense_margin, config.dense_unit).sum()
                for each in _stacked(output.alignments)
            ]
            terms["dense_triplet"] = dense[0] if len(dense) == 1 else torch.stack(dense).sum()
        return terms

    def _classified(self, output: ModelOutput) -> dict[str, torch.Tensor]:
        """The terms that are cross-entropies, made together."""
        consistency = output.consistency_scores if self.config.ic > 0 else None
        given = {
            "identity": output.scores,
            "consistency": consistency,
            "part": output.node_scores,
            "pair": output.pair_scores,
        }
        several = {name: scores for name, scores in given.items() if scores is not None}
        losses = identity_losses(list(several.values()), self.config.label_smoothing)
        terms = dict(zip(several, losses.unbind(), strict=True))
        if consistency is not None and len(consistency.own_B) > 1:
            terms["consistency"] = len(consistency.own_B) * terms["consistency"]  # summed over layers
        return terms


def _stacked(alignments: tuple[Alignment, ...]) -> tuple[Alignment, ...]:
    """All layers as one alignment if their maps have one size, as those of a ResNet with last stride 1."""
    if len(alignments) == 1 or len({each.comask_NL.shape for each in alignments}) > 1:
        return alignments
    return (Alignment(*(torch.stack(columns) for columns in zip(*alignments, strict=True))),)
