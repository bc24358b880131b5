"""Being asked to stop: SIGTERM or SIGUSR1 to any rank becomes a checkpoint and an exit code to requeue on.

The signal only sets a flag; the ranks agree on it between steps and between the batches of an evaluation, so that all
of them leave at the same place. Imports nothing slow: the signals are taken before anything else is loaded.
"""

import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

EXIT_CODE = 75  # EX_TEMPFAIL: try again later
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
T = TypeVar("T")


class StoppedError(Exception):
    """Every rank raises it at the same place."""


class StopRequest:
    """Whether somebody asked this run to stop."""

    def __init__(self) -> None:
        self.asked = False
        self.any_rank: Callable[[bool], bool] = bool  # how ranks agree; set once they can
        self.moving: Callable[[], None] = lambda: None  # told at every batch of an evaluation

    def listen(self) -> "StopRequest":
        """Take the signals from now on; only the main thread can."""
        for number in SIGNALS:
            signal.signal(number, self._ask)
        return self

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def check(self) -> None:
        """StoppedError on all ranks if one was asked. Every rank must call it at the same place."""
        if self.any_rank(self.asked):
            raise StoppedError

    def between(self, batches: Iterable[T], shared: int) -> Iterator[T]:
        """The batches, with a check after each of the first `shared`, which every rank must have."""
        for number, batch in enumerate(batches):
            yield batch
            self.moving()
            if number < shared:
                self.check()


STOP = StopRequest()  # of this process, which has its signals only once
