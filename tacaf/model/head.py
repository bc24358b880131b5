"""The identity head: BNNeck, then a classifier without bias (AGW, LbA)."""

import torch
from torch import nn

from tacaf.model.norm import BatchNorm1d, NormMode

CLASSIFIER_STD = 0.001


def bn_neck(width: int, norm: NormMode) -> BatchNorm1d:
    """A batch norm whose bias stays 0, between the metric feature and the classifier (BNNeck)."""
    neck = BatchNorm1d(width, norm)
    neck.bias.requires_grad_(False)
    return neck


def new_classifier(width: int, identities: int) -> nn.Linear:
    """width to identities without bias, drawn from N(0, .001)."""
    classifier = nn.Linear(width, identities, bias=False)
    nn.init.normal_(classifier.weight, std=CLASSIFIER_STD)
    return classifier


class Head(nn.Module):
    """BNNeck and classifier: pooled B x C to logits B x I."""

    def __init__(self, width: int, identities: int, norm: NormMode) -> None:
        super().__init__()
        self.neck = bn_neck(width, norm)
        self.classifier = new_classifier(width, identities)

    def forward(self, pooled_BC: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.neck(pooled_BC))
