"""Cross-entropy against scalar loops."""

import math

import pytest
import torch

from tacaf.losses.identity import identity_loss


def _scalar_loss(logits, labels, smoothing):
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        log_sum = math.log(sum(math.exp(value) for value in row))
        wanted = [smoothing / len(row) + (1 - smoothing) * (i == label) for i in range(len(row))]
        total += sum(w * (log_sum - value) for w, value in zip(wanted, row, strict=True))
    return total / len(labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_identity_loss_against_scalar_loops(smoothing, dtype):
    logits, label = (3 * torch.randn(6, 5, generator=torch.Generator().manual_seed(0))).to(dtype), torch.arange(6) % 5
    loss = identity_loss(logits, label, smoothing)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(_scalar_loss(logits.tolist(), label.tolist(), smoothing), rel=1e-5)


def test_smoothing_is_off_unless_asked_for():
    logits, label = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert identity_loss(logits, label) == identity_loss(logits, label, 0.0) != identity_loss(logits, label, 0.2)
