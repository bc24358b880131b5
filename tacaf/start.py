"""What a command imports first: from here on a signal is one line and a status, also while the slow imports go on.

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


def start(module: str, signals: bool = True) -> NoReturn:
    """Import the module of a command, run its `main`, and end the process.

    `signals`: answer SIGTERM and SIGHUP too; False for a command that does so itself.
    """
    for number in TO_STOP if signals else TO_STOP[:1]:
        if signal.getsignal(number) != signal.SIG_IGN:  # as `nohup` and a job in the background ask for
            signal.signal(number, leave)
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
