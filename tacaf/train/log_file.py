"""run.log: what a run says, from every rank, one line each, with time, rank and level.

The lines go through the logger `tacaf.train`, so that a program that trains can filter them or send them elsewhere.
"""

import logging
import sys
from pathlib import Path

LOGGER = "tacaf.train"
FORMAT = "%(asctime)s rank {rank} %(levelname)s %(message)s"
TIME = "%Y-%m-%dT%H:%M:%S%z"


class LogFile(logging.FileHandler):
    """Appends to the file. A line that cannot be written is lost: a log ends no training."""

    def __init__(self, path: Path, rank: int) -> None:
        super().__init__(path, encoding="utf-8", delay=True)  # ranks with nothing to say do not open it
        self.setFormatter(logging.Formatter(FORMAT.format(rank=rank), TIME))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: the terminal has the line."""


def open_log(path: Path, rank: int) -> logging.Logger:
    """The logger, which from now on writes into this file too, and no longer into one of an earlier run.

    Its level becomes INFO, unless the program has set one.
    """
    logger = logging.getLogger(LOGGER)
    close_log()
    logger.addHandler(LogFile(path, rank))
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    return logger


def warn(text: str) -> None:
    """Log a warning and print it, unless the program has silenced the logger's warnings."""
    logger = logging.getLogger(LOGGER)
    if logger.isEnabledFor(logging.WARNING):
        logger.warning("%s", text)
        print(f"warning: {text}", file=sys.stderr, flush=True)


def close_log() -> None:
    """Leave the file."""
    logger = logging.getLogger(LOGGER)
    for handler in [one for one in logger.handlers if isinstance(one, LogFile)]:
        logger.removeHandler(handler)
        handler.close()
