"""Which signals end a command, and how the process exits during its imports. This module imports almost nothing."""

import os
import signal
from types import FrameType
from typing import NoReturn

TO_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
HELD = (signal.SIGTERM, signal.SIGUSR1)  # those that a command may handle itself


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """End the process at once. During the imports nothing is open yet, and libraries would swallow an exception."""
    if os.environ.get("RANK", "0") == "0":
        line = b"error: interrupted\n" if number == signal.SIGINT else b"error: terminated\n"
        try:  # noqa: SIM105 - contextlib would be one more import before the signals are handled
            os.write(2, line)
        except OSError:  # the reader has closed the pipe
            pass
    os._exit(128 + number)
