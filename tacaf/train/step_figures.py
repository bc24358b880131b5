"""A step's figures: losses and the gradient's norm, on their way to the host while the next step runs.

A GPU works behind the host. Reading a figure where it is computed would make the host wait for all that was launched
before it, and the GPU then for the host. So the figures leave in one copy after the optimiser's step, and are read when
the next step is launched. What they say belongs to their own step all the same: it is logged under its number, and a
figure that is not finite stops or skips that step, which has updated nothing (`update.py`).
"""

import math
from collections import deque

import torch

from tacaf.data.index import ShardIndex
from tacaf.interfaces import Batch
from tacaf.train.run_log import NORM, Launched, Watcher
from tacaf.transfer import HostCopy


def stacked(loss: torch.Tensor, terms: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss and its terms in one float32 tensor, detached."""
    return torch.stack([loss.detach(), *terms.values()]).float()


def launched(
    number: int,
    batch: Batch,
    rates: dict[str, float],
    wait_s: float,
    terms: dict[str, torch.Tensor],
    figures_F: torch.Tensor,
    norm: torch.Tensor | None,
) -> Launched:
    """What there will be to say of a step; its figures, `stacked` and the norm, leave the device here."""
    names: tuple[str, ...] = ("loss", *terms)
    if norm is not None:
        names, figures_F = (*names, NORM), torch.cat([figures_F, norm.reshape(1)])
    return Launched(number, batch.epoch, batch.step, batch.row_B.numpy(), rates, wait_s, names, HostCopy(figures_F))


def lag_of(device: torch.device) -> int:
    """How many steps later figures are read. A CPU has no queue of launched work: nothing waits for anything there."""
    return 0 if device.type == "cpu" else 1


class StepReader:
    """Reads the figures of launched steps in their order, and has them logged."""

    def __init__(self, watcher: Watcher, index: ShardIndex, skipped: int, lag: int) -> None:
        """`skipped`: how many steps of the run had updated nothing before."""
        self.watcher, self.index, self.skipped, self.lag = watcher, index, skipped, lag
        self._unread: deque[Launched] = deque()

    def add(self, step: Launched) -> None:
        """Read all but the newest `lag` steps. InputError for a figure that is not finite, unless it may be skipped."""
        self._unread.append(step)
        self._read_until(self.lag)

    def finish(self) -> None:
        """Read what is left: before anything is saved, evaluated or ended."""
        self._read_until(0)

    def _read_until(self, left: int) -> None:
        while len(self._unread) > left:
            self._read(self._unread.popleft())

    def _read(self, step: Launched) -> None:
        own = dict(zip(step.names, step.values.wait().tolist(), strict=True))
        norm = own.pop(NORM, None)
        figures = self.watcher.gather(own, step.wait_s)
        if not figures.finite or not math.isfinite(norm or 0.0):
            keys = [self.index.key(row) for row in step.row_B.tolist()]
            self.watcher.nonfinite(figures, norm, step, keys, self.skipped)
            self.skipped += 1
        self.watcher.step(step, figures, norm)
