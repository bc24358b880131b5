"""Reading a step's figures while the next step runs.

A GPU runs behind the host. Reading a figure when it is computed would make the host wait for everything launched before
it, and then the GPU for the host. So the figures are copied to the host after the optimiser's step, and read after the
next step has been launched. They are logged under their own step's number and with its own time, which does not depend
on when they are read. For a non-finite figure the run stops or skips that step, which has updated nothing
(`update.py`).
"""

import math
from collections import deque

import torch

from tacaf.data.index import ShardIndex
from tacaf.train.collapse import CollapseWatch
from tacaf.train.run_log import RunLog
from tacaf.train.step_figures import NORM, LaunchedStep


def lag_of(device: torch.device) -> int:
    """How many steps later figures are read. A CPU has no queue of launched work, so they are read at once."""
    return 0 if device.type == "cpu" else 1


class StepReader:
    """Reads the figures of launched steps in order, logs them, and warns of a network that has collapsed."""

    def __init__(self, log: RunLog, index: ShardIndex, lag: int, collapse: CollapseWatch) -> None:
        self.log, self.index, self.lag, self.collapse = log, index, lag, collapse
        self._unread: deque[LaunchedStep] = deque()

    def add(self, step: LaunchedStep, skipped: int) -> int:
        """Read the figures of all but the newest `lag` steps.

        `skipped` is the number of skipped steps so far; returns the new number. Raises InputError for a non-finite
        figure unless its step may be skipped.
        """
        self._unread.append(step)
        return self._read_until(self.lag, skipped)

    def finish(self, skipped: int) -> int:
        """Read the rest, before anything is saved or evaluated. `skipped` and the result are as in `add`."""
        return self._read_until(0, skipped)

    def _read_until(self, left: int, skipped: int) -> int:
        while len(self._unread) > left:
            skipped = self._read(self._unread.popleft(), skipped)
        return skipped

    def _read(self, step: LaunchedStep, skipped: int) -> int:
        own = dict(zip(step.names, step.values.wait().tolist(), strict=True))
        norm = own.pop(NORM, None)
        figures = self.log.gather(own, step)
        if not figures.finite or not math.isfinite(norm or 0.0):
            keys = [self.index.key(row) for row in step.row_B.tolist()]
            self.log.nonfinite(figures, norm, step, keys, skipped)
            skipped += 1
        self.log.step(step, figures, norm)
        warning = self.collapse.step(step.epoch, figures.mean)
        if warning is not None:
            self.log.warn_once(warning)
        return skipped
