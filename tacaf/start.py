"""What a command imports first, so that a signal prints one line and sets the exit status even during slow imports.

from tacaf.start import start

if __name__ == "__main__":
    start("launch.search")
"""

import signal
import sys
from typing import NoReturn

from tacaf.signals import HELD, TO_STOP, leave


def start(module: str, signals: bool = True) -> NoReturn:
    """Import the module of a command, run its `main`, and end the process.

    `signals`: end the command on SIGTERM and SIGHUP too. False for a command that handles SIGTERM and SIGUSR1 itself:
    they are blocked until the command unblocks them (`StopRequest.listen`), so none is lost.
    """
    for number in TO_STOP if signals else TO_STOP[:1]:
        if signal.getsignal(number) != signal.SIG_IGN:  # `nohup` and background jobs set SIG_IGN
            signal.signal(number, leave)
    if not signals:
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    from tacaf.command import run_to_end  # after the signals are handled

    sys.exit(run_to_end(module, signals))
