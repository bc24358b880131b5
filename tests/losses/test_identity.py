"""Cross-entropy against scalar loops."""

import math

import pytest
import torch

from tacaf.interfaces import Scores
from tacaf.losses.identity import identity_loss, identity_losses


def _scalar_loss(logits, labels, smoothing):
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        log_sum = math.log(sum(math.exp(value) for value in row))
        wanted = [smoothing / len(row) + (1 - smoothing) * (i == label) for i in range(len(row))]
        total += sum(w * (log_sum - value) for w, value in zip(wanted, row, strict=True))
    return total / len(labels)


def scores(logits, label):
    log_probability = logits.log_softmax(1)
    return Scores(log_probability[torch.arange(len(label)), label], log_probability.mean(1))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_identity_loss_against_scalar_loops(smoothing):
    logits, label = 3 * torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 5
    halves = Scores(*(part.unflatten(0, (2, 3)) for part in scores(logits, label)))  # stacked: one mean of all
    losses = identity_losses([scores(logits, label), scores(logits[:4], label[:4]), halves], smoothing)
    assert losses.dtype == torch.float32
    whole, four = (_scalar_loss(logits.tolist()[:n], label.tolist()[:n], smoothing) for n in (6, 4))
    assert losses.tolist() == pytest.approx([whole, four, whole], rel=1e-5)


def test_smoothing_is_off_unless_asked_for():
    given = scores(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))
    assert identity_loss(given) == identity_loss(given, 0.0) != identity_loss(given, 0.2)
