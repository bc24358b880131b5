"""The computation of a training step: forward pass, losses and backward pass."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch

from tacaf.interfaces import Batch
from tacaf.losses.total import TacafLoss
from tacaf.train.config import Config
from tacaf.train.forward import forward
from tacaf.train.update import backward, poisoned


class Computed(NamedTuple):
    """The results of a step after its backward pass. The next step may overwrite them."""

    terms: dict[str, torch.Tensor]
    figures_F: torch.Tensor  # the loss and its terms, float32


# Computes the losses of a batch and leaves the gradients in the parameters. The second argument says whether the batch
# is the last one of an update.
Compute: TypeAlias = Callable[[Batch, bool], Computed]


def stacked(loss: torch.Tensor, terms: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss and its terms in one float32 tensor, detached."""
    return torch.stack([loss.detach(), *terms.values()]).float()


def build_compute(config: Config, engine: Any, criterion: TacafLoss) -> Compute:
    """The computation of a step; `engine` is DeepSpeed's, around the model."""

    def compute(batch: Batch, last: bool) -> Computed:
        loss, terms = criterion(forward(engine, batch, config), batch.label_B)
        figures_F = stacked(loss, terms)
        backward(engine, poisoned(loss, figures_F), last=last)
        return Computed(terms, figures_F)

    return compute
