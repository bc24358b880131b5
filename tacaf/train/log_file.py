"""run.log, the log file of a run: the lines of every rank, with time, rank and level.

The lines pass through the logger `tacaf.train`, so that programs can filter them or send them elsewhere.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOGGER = logging.getLogger("tacaf.train")
FORMAT = "%(asctime)s rank {rank} %(levelname)s %(message)s"
TIME = "%Y-%m-%dT%H:%M:%S%z"


class LogFile(logging.FileHandler):
    """Appends to the file. A line that cannot be written is dropped, because a log must not end a training."""

    def __init__(self, path: Path, rank: int) -> None:
        super().__init__(path, encoding="utf-8", delay=True)  # ranks that log nothing do not open it
        self.setFormatter(logging.Formatter(FORMAT.format(rank=rank), TIME))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Do nothing; the line was printed on the terminal."""


@contextmanager
def log_into(path: Path, rank: int) -> Iterator[None]:
    """Append this rank's log lines to the file inside the block.

    Lines of level INFO and above are written, unless the program has set another level.
    """
    file, before = LogFile(path, rank), LOGGER.level
    LOGGER.addHandler(file)
    if before == logging.NOTSET:
        LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.setLevel(before)
        LOGGER.removeHandler(file)
        file.close()


def warn(text: str) -> None:
    """Log a warning and print it, unless the program has silenced the logger's warnings."""
    if LOGGER.isEnabledFor(logging.WARNING):
        LOGGER.warning("%s", text)
        print(f"warning: {text}", file=sys.stderr, flush=True)
