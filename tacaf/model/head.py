"""The identity head: BNNeck, then a classifier without bias (AGW, LbA)."""

import torch
from torch import nn

from tacaf.interfaces import Scores
from tacaf.model.classifier import Classifier
from tacaf.model.norm import BatchNorm1d, NormMode

CLASSIFIER_STD = 0.001


def bn_neck(width: int, norm: NormMode) -> BatchNorm1d:
    """A batch norm whose bias stays 0, between the metric feature and the classifier (BNNeck)."""
    neck = BatchNorm1d(width, norm)
    neck.bias.requires_grad_(False)
    return neck


def new_classifier(width: int, identities: int, chunk: int) -> Classifier:
    """width to identities without bias, drawn from N(0, .001), in pieces of at most `chunk` identities."""
    weight = nn.Linear(width, identities, bias=False).weight
    return Classifier(nn.init.normal_(weight, std=CLASSIFIER_STD), chunk)


class Head(nn.Module):
    """BNNeck and classifier: pooled B x C and labels B to the scores of B rows."""

    def __init__(self, width: int, identities: int, norm: NormMode, chunk: int) -> None:
        super().__init__()
        self.neck = bn_neck(width, norm)
        self.classifier = new_classifier(width, identities, chunk)

    def forward(self, pooled_BC: torch.Tensor, label_B: torch.Tensor) -> Scores:
        scores: Scores = self.classifier(self.neck(pooled_BC), label_B)
        return scores
