"""The identity head: BNNeck, then a classifier without bias (AGW, LbA)."""

from collections.abc import Sequence

import torch
from torch import nn

from tacaf import distributed
from tacaf.interfaces import Scores
from tacaf.model.classifier import Classifier
from tacaf.model.identities import IdentityRange, StepIdentities
from tacaf.model.norm import BatchNorm1d, NormMode, own_statistics
from tacaf.model.ranges import RangeClassifier, initial_weight

CLASSIFIER_STD = 0.001


def bn_neck(width: int, norm: NormMode) -> BatchNorm1d:
    """A batch norm whose bias stays 0, between the metric feature and the classifier (BNNeck)."""
    neck = BatchNorm1d(width, norm)
    neck.bias.requires_grad_(False)
    return neck


def new_classifier(width: int, identities: int, chunk: int) -> Classifier:
    """width to identities without bias, drawn from N(0, 0.001), in pieces of at most `chunk` identities."""
    weight = nn.Linear(width, identities, bias=False).weight
    return Classifier(nn.init.normal_(weight, std=CLASSIFIER_STD), chunk)


def new_range_classifier(name: str, shape: tuple[int, ...], identities: int, chunk: int) -> RangeClassifier:
    """This rank's range of a classifier drawn from N(0, 0.001). `shape` is that of one identity's weights: C or N x C.

    The other ranks' ranges are never built. Classifiers of different names differ. Here the rows of all ranks are
    classified, so a chunk has fewer identities, and its logits take as much memory as those of a whole classifier.
    """
    ranks = distributed.world_size()
    own = IdentityRange.of_rank(identities, distributed.rank(), ranks)
    return RangeClassifier(initial_weight(name, shape, own, CLASSIFIER_STD), own, max(1, chunk // ranks))


def build_classifier(name: str, width: int, identities: int, chunk: int, split: bool) -> nn.Module:
    """`new_classifier`, or with `split` the `new_range_classifier` of this name."""
    if split:
        return new_range_classifier(name, (width,), identities, chunk)
    return new_classifier(width, identities, chunk)


class Head(nn.Module):
    """BNNeck and classifier: pooled features and labels to scores."""

    def __init__(self, width: int, identities: int, norm: NormMode, chunk: int, split: bool = False) -> None:
        """split: keep only this rank's range of the classifier."""
        super().__init__()
        self.neck = bn_neck(width, norm)
        self.classifier = build_classifier("head", width, identities, chunk, split)

    def forward(
        self,
        pooled_BC: torch.Tensor,
        label_B: torch.Tensor,
        more: Sequence[tuple[torch.Tensor, torch.Tensor]] = (),
        used: StepIdentities | None = None,
    ) -> Scores:
        """The scores of B rows, then those of every batch in `more`, which holds pooled N x C and labels N.

        The neck normalises each batch by its own statistics, and only the first moves the running statistics. One call
        of the classifier serves them all. used: the identities that the step uses, where they are not all.
        """
        necked, labels = [self.neck(pooled_BC)], [label_B]
        with own_statistics(self):
            for pooled_NC, label_N in more:
                necked.append(self.neck(pooled_NC))
                labels.append(label_N)
        rows, label = (torch.cat(necked), torch.cat(labels)) if more else (necked[0], label_B)
        scores: Scores = self.classifier(rows, label, used)
        return scores
