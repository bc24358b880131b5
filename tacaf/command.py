"""The one entry of every command: how errors are said, what a signal does, and which status the process ends with.

    from tacaf.command import entry, start

    if __name__ == "__main__":
        start("launch.search")  # before the slow imports, so that Ctrl-C is one line from the first moment

    import torch
    ...

    @entry()
    def main(argv: Sequence[str] | None = None) -> int: ...

Statuses: 0 done; 1 an unexpected error, or `verify` found problems; 2 input that cannot be used; 130 Ctrl-C; 143
SIGTERM; 141 the reader of a pipe went away. A training has more (docs/cluster.md).
"""

import argparse
import functools
import importlib
import os
import platform
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from tacaf.files import path_of, reason_of, shown
from tacaf.vocabulary import InputError

UNEXPECTED, INPUT, PIPE = 1, 2, 128 + signal.SIGPIPE
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM

Main = Callable[[Sequence[str] | None], int]


class Terminated(BaseException):
    """SIGTERM: raised in the main thread, so that whatever is open cleans up as it does after an error."""


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line as every other input error: one line, status 2."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see `{self.prog} --help`")


def to_path(text: str) -> Path:
    """The `type=` of every option that takes a path: `~` is expanded; an empty name or one with NUL is refused."""
    try:
        return path_of(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def entry(signals: bool = True) -> Callable[[Main], Main]:
    """Make a `main(argv)` an entry: it returns the exit status and prints one line for whatever goes wrong.

    `signals`: let SIGTERM end it like an error; False for a command that answers signals itself.
    """

    def wrap(main: Main) -> Main:
        @functools.wraps(main)
        def guarded(argv: Sequence[str] | None = None) -> int:
            _speak_any_terminal()
            try:
                with _terminable() if signals else _unchanged():
                    status = main(argv)
                    sys.stdout.flush()
                    return status
            except InputError as error:
                if error.shared and _other_rank():
                    return INPUT
                return say(error, str(error), INPUT)
            except KeyboardInterrupt as stop:
                if _other_rank():
                    return INTERRUPTED
                return say(stop, "interrupted", INTERRUPTED)
            except Terminated as stop:
                return say(stop, "terminated", TERMINATED)
            except BrokenPipeError:
                _silence(sys.stdout)
                return PIPE
            except OSError as error:
                return say(error, about(error), INPUT)
            except MemoryError as error:
                return say(error, "out of memory; give it less at once, or use a machine with more", INPUT)
            except Exception as error:
                return say(error, unexpected(error), UNEXPECTED)

        return guarded

    return wrap


def start(module: str, signals: bool = True) -> NoReturn:
    """Import the module of a command under the handlers of `entry`, run its `main`, and end the process."""

    @entry(signals)
    def run(argv: Sequence[str] | None) -> int:
        return importlib.import_module(module).main(argv)

    sys.exit(run(None))


def say(error: BaseException, text: str, status: int) -> int:
    """Print one line about an error, with its notes (what was kept of the work), and return the status."""
    line = "error: " + "; ".join([text, *getattr(error, "__notes__", [])])
    with suppress(OSError, ValueError):  # nobody may be reading
        print(shown(line), file=sys.stderr, flush=True)
    return status


def about(error: OSError) -> str:
    """What the system refused, and where, as one sentence."""
    names = [shown(name) for name in (error.filename, error.filename2) if name is not None]
    where = f"{' and '.join(names)}: " if names else ""
    return f"{where}{reason_of(error)}"


def unexpected(error: BaseException) -> str:
    """The sentence for an error that nobody foresaw. The traceback goes into a file, which the sentence names."""
    text = str(error).splitlines()
    what = f"unexpected {type(error).__name__}" + (f" ({text[0][:200]})" if text and text[0] else "")
    try:
        handle, name = tempfile.mkstemp(prefix="tacaf-error-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S%z')}, Python {platform.python_version()}\n{sys.argv}\n\n")
            traceback.print_exception(error, file=file)
    except OSError as problem:
        return f"{what}; its traceback could not be written: {reason_of(problem)}"
    return f"{what}; the traceback is in {name}: please report it with that file, as CONTRIBUTING.md says"


def _other_rank() -> bool:
    """Whether rank 0 of the same run says what all ranks have to say."""
    return os.environ.get("RANK", "0") != "0"


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises `Terminated` in the block; a second signal does not interrupt the cleaning up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _unchanged() -> Iterator[None]:
    yield


def _speak_any_terminal() -> None:
    """Escape what the terminal's encoding lacks, so that no result is lost to a character."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            with suppress(ValueError, OSError):
                reconfigure(errors="backslashreplace")


def _silence(stream: Any) -> None:
    """Keep Python from complaining about a closed pipe once more when it ends."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
