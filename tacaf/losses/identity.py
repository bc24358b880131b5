"""Identity classification: cross-entropy from log-probabilities."""

from collections.abc import Sequence

import torch

from tacaf.interfaces import Scores


def identity_losses(several: Sequence[Scores], label_smoothing: float = 0.0) -> torch.Tensor:
    """The mean cross-entropy of each of the given scores over all their rows, float32, one number each.

    Label smoothing, which is 0 in AGW, LbA and CAJ, mixes the target with the uniform distribution over all identities.
    """
    own = -torch.stack([scores.own_B.mean() for scores in several])
    if label_smoothing == 0:
        return own
    return (1 - label_smoothing) * own - label_smoothing * torch.stack([scores.mean_B.mean() for scores in several])


def identity_loss(scores: Scores, label_smoothing: float = 0.0) -> torch.Tensor:
    """The same for one, a scalar."""
    return identity_losses([scores], label_smoothing)[0]
