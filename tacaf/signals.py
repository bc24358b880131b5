"""Which signals end a command, and how the process leaves while nothing is open yet. Imports almost nothing."""

import os
import signal
from types import FrameType
from typing import NoReturn

TO_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
HELD = (signal.SIGTERM, signal.SIGUSR1)  # what a command handles itself, if it does


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """End the process here and now: nothing is open during the imports, and libraries swallow exceptions there."""
    if os.environ.get("RANK", "0") == "0":
        line = b"error: interrupted\n" if number == signal.SIGINT else b"error: terminated\n"
        try:  # noqa: SIM105 - contextlib would be one more import before the signals are taken
            os.write(2, line)
        except OSError:  # nobody is reading
            pass
    os._exit(128 + number)
