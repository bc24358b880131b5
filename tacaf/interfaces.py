"""The types that model, losses, data and evaluation exchange, with their shapes.

B images of a rank's batch in the order [visible..., infrared...], C channels, H x W pixels or positions, L = H*W,
N pairs, I identities of the training set, K images per identity and modality, M identities in the global batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from tacaf.transfer import to_device


class Pairs(NamedTuple):
    """Cross-modal pairs drawn for one layer, as rows of the rank's batch."""

    anchor_N: torch.Tensor  # int64
    positive_N: torch.Tensor  # int64, same identity, other modality
    negative_N: torch.Tensor  # int64, another identity of the anchor's group, the positive's modality


class DrawnPairs(NamedTuple):
    """The pairs drawn from a batch for layer 3 and for layer 4; None if the model needs none or none were drawn."""

    pairs3: Pairs | None = None
    pairs4: Pairs | None = None

    def changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "DrawnPairs":
        """The same draws with `change` applied to every column."""
        return DrawnPairs(*(None if pairs is None else Pairs(*map(change, pairs)) for pairs in self))


class StepKey(NamedTuple):
    """What the random draws of a training step depend on."""

    seed: int
    epoch: int
    step: int


class Batch(NamedTuple):
    """One rank's share of a global training batch.

    Rows are branch-major: all V0, all V1 (if channel augmentation is on), all I. No code may rely on more than
    "visible first"; pairs are drawn by labels, branches and positions. `position_B` is the image's row in the *global*
    batch, so draws keyed by it do not depend on the world size.
    """

    images_BCHW: torch.Tensor  # float32, normalised and augmented
    label_B: torch.Tensor  # int64, 0..I-1
    branch_B: torch.Tensor  # int64, vocabulary.Branch
    group_B: torch.Tensor  # int64, the pair group of the image's identity (method §1)
    position_B: torch.Tensor  # int64, 0..global batch-1
    row_B: torch.Tensor  # int64, the image's row in the shard index
    visible: int  # how many of the first rows are visible (V0 and V1)
    epoch: int
    step: int
    pairs: DrawnPairs = DrawnPairs()
    wait_s: float = 0.0  # how long the caller waited for the batch

    def to(self, device: torch.device) -> "Batch":
        """The batch with images, labels and pairs on `device`, copied without making the host wait.

        The other columns stay on the host, where they are needed to draw pairs and to write logs. Labels and pairs are
        copied as one tensor.
        """
        drawn = [pairs for pairs in self.pairs if pairs is not None]
        columns = [self.label_B, *(column for pairs in drawn for column in pairs)]
        sizes = [len(column) for column in columns]
        label_B, *moved = to_device(torch.cat(columns), device).split(sizes)
        placed = iter(Pairs(*moved[first : first + 3]) for first in range(0, len(moved), 3))
        return self._replace(
            images_BCHW=to_device(self.images_BCHW, device),
            label_B=label_B,
            pairs=DrawnPairs(*(None if pairs is None else next(placed) for pairs in self.pairs)),
        )


class Alignment(NamedTuple):
    """What CMAAM passes to the losses for one layer."""

    positive_distance_NL: torch.Tensor  # float32
    negative_distance_NL: torch.Tensor  # float32
    comask_NL: torch.Tensor  # float32, detached


class Scores(NamedTuple):
    """All that a cross-entropy needs of a classifier's logits, which may never be in memory together.

    They are logits of all I identities, or of those that the step uses (`model.classifier.negatives`).
    """

    own_B: torch.Tensor  # float32, log-probability of the row's own identity
    mean_B: torch.Tensor  # float32, mean log-probability over these identities, for label smoothing


class ModelOutput(NamedTuple):
    """Everything that the training forward passes to the losses. A disabled module gives an empty tuple."""

    pooled_BC: torch.Tensor  # float32, GeM before the neck
    scores: Scores
    consistency_scores: tuple[Scores, ...] = ()  # layer 3, layer 4: a row for each of N anchors
    alignments: tuple[Alignment, ...] = ()  # layer 3, layer 4
    node_scores: tuple[Scores, ...] = ()  # one per classified IPCAM node (g, coarse, fine), each with B rows
    pair_scores: tuple[Scores, ...] = ()  # IPCAM stage 4: visible and infrared, a row for each of P pairs
