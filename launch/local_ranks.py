"""Start N ranks of a command on this machine: python launch/local_ranks.py N SCRIPT [WORDS ...]

This is PyTorch's launcher, like `torchrun --standalone`, but it exits with the status of the rank that failed first and
adds nothing to what that rank printed. torchrun adds its own traceback and always exits with 1.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("launch.local_ranks")

import logging
import os
import sys
from collections.abc import Sequence

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from tacaf.command import entry
from tacaf.vocabulary import InputError


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    if len(words) < 2 or not words[0].isdigit():
        raise InputError(f"expected the number of ranks and a script, got {' '.join(words) or 'nothing'}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the launcher would set it too, but with a four-line warning
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        torchrun.run(torchrun.parse_args(["--standalone", "--nproc-per-node", *words]))
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        return status if status >= 0 else 128 - status  # negative if a signal ended it
    except SignalException as stop:  # the launcher has passed it on and waited for the ranks
        return 128 + stop.sigval
    return 0
