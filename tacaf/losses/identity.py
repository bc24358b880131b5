"""Identity classification: cross-entropy in float32."""

import torch
import torch.nn.functional as F


def identity_loss(logits_BI: torch.Tensor, label_B: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Mean cross-entropy of logits (any float dtype) against int64 labels, as a float32 scalar.

    Label smoothing is 0 in AGW, LbA and CAJ; the option mixes in the uniform distribution over all identities.
    """
    return F.cross_entropy(logits_BI.float(), label_B, label_smoothing=label_smoothing)
