"""Graceful shutdown: SIGTERM or SIGUSR1 to any rank leads to a checkpoint and an exit status to requeue on.

The signal only sets a flag. The ranks agree on it between steps and between the batches of an evaluation, so that all
of them stop at the same point.
"""

import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from tacaf import distributed
from tacaf.signals import HELD

T = TypeVar("T")


class StoppedError(Exception):
    """The run was told to stop. Every rank raises this at the same point."""


class StopRequest:
    """Whether this run was told to stop."""

    def __init__(self) -> None:
        self.asked = False

    def listen(self) -> "StopRequest":
        """Handle the signals from now on, including one that arrived during the imports. Only the main thread can.

        The handlers stay until the process ends, so that a second signal cannot change the exit status of a run that
        has already been saved.
        """
        for number in HELD:
            signal.signal(number, self._ask)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
        return self

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def check(self) -> None:
        """Raise StoppedError on all ranks if one of them was told to stop. Every rank must call it at the same time."""
        if distributed.any_rank(self.asked):
            raise StoppedError

    def between(self, batches: Iterable[T], shared: int, moving: Callable[[], None]) -> Iterator[T]:
        """The batches, with a check after each of the first `shared`, which every rank must have.

        `moving` is called after every batch.
        """
        for number, batch in enumerate(batches):
            yield batch
            moving()
            if number < shared:
                self.check()
