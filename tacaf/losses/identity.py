"""Identity classification: cross-entropy from log-probabilities."""

import torch

from tacaf.interfaces import Scores


def identity_loss(scores: Scores, label_smoothing: float = 0.0) -> torch.Tensor:
    """The mean cross-entropy of the rows, a float32 scalar.

    Label smoothing, which is 0 in AGW, LbA and CAJ, mixes the target with the uniform distribution over all identities.
    """
    own = -scores.own_B.mean()
    if label_smoothing == 0:
        return own
    return (1 - label_smoothing) * own - label_smoothing * scores.mean_B.mean()
