"""A step's figures: losses and the gradient's norm, on their way to the host while the next step runs.

A GPU runs behind the host. Reading a figure where it is computed would make the host wait for everything launched
before it, and then the GPU for the host. So the figures leave in one copy after the optimiser's step, and are read when
the next step has been launched. They are still logged under their own step's number, and a non-finite figure stops or
skips that step, which has updated nothing (`update.py`).
"""

import math
from collections import deque
from typing import NamedTuple

import torch

from tacaf.data.index import ShardIndex
from tacaf.interfaces import Batch
from tacaf.train.run_log import NORM, LaunchedStep, RunLog
from tacaf.transfer import HostCopy


def stacked(loss: torch.Tensor, terms: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss and its terms in one float32 tensor, detached."""
    return torch.stack([loss.detach(), *terms.values()]).float()


class Computed(NamedTuple):
    """What a step has computed when the gradients are there. The next step may overwrite it."""

    terms: dict[str, torch.Tensor]
    figures_F: torch.Tensor  # the loss and its terms, float32


def launched(
    number: int, batch: Batch, rates: dict[str, float], wait_s: float, computed: Computed, norm: torch.Tensor | None
) -> LaunchedStep:
    """Everything that will be logged of a step. Its figures, `stacked` and the norm, leave the device here."""
    names: tuple[str, ...] = ("loss", *computed.terms)
    figures_F = computed.figures_F
    if norm is not None:
        names, figures_F = (*names, NORM), torch.cat([figures_F, norm.reshape(1)])
    return LaunchedStep(number, batch.epoch, batch.step, batch.row_B.numpy(), rates, wait_s, names, HostCopy(figures_F))


def lag_of(device: torch.device) -> int:
    """How many steps later figures are read. A CPU has no queue of launched work, so nothing has to wait there."""
    return 0 if device.type == "cpu" else 1


class StepReader:
    """Reads the figures of launched steps in order, and logs them."""

    def __init__(self, log: RunLog, index: ShardIndex, skipped: int, lag: int) -> None:
        """`skipped`: how many steps of the run were skipped before this start."""
        self.log, self.index, self.skipped, self.lag = log, index, skipped, lag
        self._unread: deque[LaunchedStep] = deque()

    def add(self, step: LaunchedStep) -> None:
        """Read all but the newest `lag` steps. InputError for a figure that is not finite, unless it may be skipped."""
        self._unread.append(step)
        self._read_until(self.lag)

    def finish(self) -> None:
        """Read the rest, before anything is saved or evaluated."""
        self._read_until(0)

    def _read_until(self, left: int) -> None:
        while len(self._unread) > left:
            self._read(self._unread.popleft())

    def _read(self, step: LaunchedStep) -> None:
        own = dict(zip(step.names, step.values.wait().tolist(), strict=True))
        norm = own.pop(NORM, None)
        figures = self.log.gather(own, step.wait_s)
        if not figures.finite or not math.isfinite(norm or 0.0):
            keys = [self.index.key(row) for row in step.row_B.tolist()]
            self.log.nonfinite(figures, norm, step, keys, self.skipped)
            self.skipped += 1
        self.log.step(step, figures, norm)
