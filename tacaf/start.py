"""What a command imports first: from here on a signal is one line and a status, also during the slow imports.

from tacaf.start import start

if __name__ == "__main__":
    start("launch.search")
"""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

TO_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
HELD = (signal.SIGTERM, signal.SIGUSR1)  # what a command handles itself, if it does


def start(module: str, signals: bool = True) -> NoReturn:
    """Import the module of a command, run its `main`, and end the process.

    `signals`: end the command on SIGTERM and SIGHUP too. False for a command that handles SIGTERM and SIGUSR1 itself:
    the system holds them back until the command unblocks them (`StopRequest.listen`), so none is lost.
    """
    for number in TO_STOP if signals else TO_STOP[:1]:
        if signal.getsignal(number) != signal.SIG_IGN:  # as `nohup` and a job in the background ask for
            signal.signal(number, leave)
    if not signals:
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    from tacaf.command import run_to_end  # after the signals are taken

    sys.exit(run_to_end(module, signals))


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """End the process here and now: nothing is open during the imports, and libraries swallow exceptions there."""
    if os.environ.get("RANK", "0") == "0":
        line = b"error: interrupted\n" if number == signal.SIGINT else b"error: terminated\n"
        try:  # noqa: SIM105 - contextlib would be one more import before the signals are taken
            os.write(2, line)
        except OSError:  # nobody is reading
            pass
    os._exit(128 + number)
