"""Reading a step's figures while the next step runs.

A GPU runs behind the host. Reading a figure where it is computed would make the host wait for everything launched
before it, and then the GPU for the host. So the figures leave in one copy after the optimiser's step, and are read when
the next step has been launched. They are still logged under their own step's number, and a non-finite figure stops or
skips that step, which has updated nothing (`update.py`).
"""

import math
from collections import deque

import torch

from tacaf.data.index import ShardIndex
from tacaf.train.run_log import RunLog
from tacaf.train.step_figures import NORM, LaunchedStep


def lag_of(device: torch.device) -> int:
    """How many steps later figures are read. A CPU has no queue of launched work, so nothing has to wait there."""
    return 0 if device.type == "cpu" else 1


class StepReader:
    """Reads the figures of launched steps in order, and logs them."""

    def __init__(self, log: RunLog, index: ShardIndex, lag: int) -> None:
        self.log, self.index, self.lag = log, index, lag
        self._unread: deque[LaunchedStep] = deque()

    def add(self, step: LaunchedStep, skipped: int) -> int:
        """Read all but the newest `lag` steps. InputError for a figure that is not finite, unless it may be skipped.

        `skipped` and the result: how many steps of the run were skipped, before and after what is read here.
        """
        self._unread.append(step)
        return self._read_until(self.lag, skipped)

    def finish(self, skipped: int) -> int:
        """Read the rest, before anything is saved or evaluated. `skipped` and the result are those of `add`."""
        return self._read_until(0, skipped)

    def _read_until(self, left: int, skipped: int) -> int:
        while len(self._unread) > left:
            skipped = self._read(self._unread.popleft(), skipped)
        return skipped

    def _read(self, step: LaunchedStep, skipped: int) -> int:
        own = dict(zip(step.names, step.values.wait().tolist(), strict=True))
        norm = own.pop(NORM, None)
        figures = self.log.gather(own, step.wait_s)
        if not figures.finite or not math.isfinite(norm or 0.0):
            keys = [self.index.key(row) for row in step.row_B.tolist()]
            self.log.nonfinite(figures, norm, step, keys, skipped)
            skipped += 1
        self.log.step(step, figures, norm)
        return skipped
