"""The entry point of every command: how errors are printed, what a signal does, and the exit status.

    from tacaf.start import start

    if __name__ == "__main__":
        start("launch.search")  # before the slow imports, so that Ctrl-C prints one line from the first moment

    import torch
    from tacaf.command import entry

    @entry()
    def main(argv: Sequence[str] | None = None) -> int: ...

Exit statuses: 0 done; 1 an unexpected error, or `verify` found problems; 2 input that cannot be used; 130 Ctrl-C; 143
SIGTERM (129 SIGHUP); 141 the reader of a pipe closed it. A training has two more: 70 if a rank died or hangs; 75 if it
was told to stop and has saved everything (docs/troubleshooting.md).
"""

import argparse
import atexit
import functools
import importlib
import os
import platform
import re
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

from tacaf.checkout import hidden_package, require_own_packages
from tacaf.extras import missing_package
from tacaf.files import path_of, reason_of, shown
from tacaf.signals import TO_STOP, leave
from tacaf.vocabulary import InputError

UNEXPECTED, INPUT, PIPE = 1, 2, 128 + signal.SIGPIPE
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
EXIT_STOPPED, EXIT_LOST_RANK = os.EX_TEMPFAIL, os.EX_SOFTWARE  # 75, "try again later", and 70
PATIENCE_S = 5.0  # for cleaning up after a signal; another one within this time is ignored

Main = Callable[[Sequence[str] | None], int]


class Terminated(BaseException):
    """SIGTERM or SIGHUP: raised in the main thread, so that everything open is cleaned up as after an error."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.number = number


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line like every other input error: one line, status 2."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see `{self.prog} --help`")


def program(module: str) -> str:
    """The `prog` of a package that is run with `python -m MODULE` or as a command of `tacaf`."""
    name = Path(sys.argv[0]).name
    return name if name.partition(" ")[0] == "tacaf" else f"python -m {module}"


def to_path(text: str) -> Path:
    """The `type=` of every option that takes a path: expands `~`, refuses an empty name or one with NUL."""
    try:
        return path_of(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def to_location(text: str) -> str:
    """The `type=` of an option that takes a folder or an address: like `to_path`; `s3://...` passes unchanged."""
    return text if "://" in text else str(to_path(text))


def to_device(text: str) -> str:
    """The `type=` of `--device`: the CPU or a GPU, and none of PyTorch's other devices."""
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", text):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, got {text!r}")
    return text


def entry(signals: bool = True) -> Callable[[Main], Main]:
    """Make a `main(argv)` an entry point: it returns the exit status and prints one line for any error.

    `signals`: let SIGTERM end it like an error; False for a command that handles signals itself.
    """

    def wrap(main: Main) -> Main:
        @functools.wraps(main)
        def guarded(argv: Sequence[str] | None = None) -> int:
            _prepare_streams()
            with _stoppable(TO_STOP if signals else TO_STOP[:1]) as raised:
                return _finished(_guarded(main, argv, raised))

        return guarded

    return wrap


def run_to_end(module: str, signals: bool = True) -> int:
    """The part of `start` that needs imports. Returns the command's exit status; no later signal can change it."""
    atexit.register(_ignore)  # the first to be registered is the last to be called

    @entry(signals)
    def run(argv: Sequence[str] | None) -> int:
        with _leaving_at_once(TO_STOP if signals else TO_STOP[:1]):
            require_own_packages()
            main = importlib.import_module(module).main
        status: int = getattr(main, "__wrapped__", main)(argv)
        return status

    status = run(None)
    # If a KeyboardInterrupt interrupted the last `exec` of a string (imports use it for dataclasses and named tuples),
    # Python kills itself with SIGINT at the end, even though we caught the interrupt. An empty `exec` clears that.
    exec("")
    for number in _handled():  # the work is done: a signal while the interpreter shuts down does not change the status
        signal.signal(number, lambda *_: os._exit(status))
    return status


def _guarded(main: Main, argv: Sequence[str] | None, raised: Sequence[BaseException]) -> int:
    """The exit status of `main`; `raised` lists the exceptions that signals raised in it."""
    try:
        return _with_signals(main, argv, raised)
    except InputError as error:
        if error.shared and _other_rank():
            return INPUT
        return say(error, str(error), INPUT)
    except KeyboardInterrupt as stop:
        return INTERRUPTED if _other_rank() else say(stop, "interrupted", INTERRUPTED)
    except Terminated as stop:
        return 128 + stop.number if _other_rank() else say(stop, "terminated", 128 + stop.number)
    except BrokenPipeError:
        return PIPE
    except OSError as error:
        return say(error, about(error), INPUT)
    except SystemExit as end:
        if isinstance(end.code, str):
            return say(end, end.code.removeprefix("error: "), UNEXPECTED)
        return 0 if end.code is None else end.code
    except ModuleNotFoundError as error:
        known = missing_package(error) or hidden_package(error)
        return say(error, unexpected(error), UNEXPECTED) if known is None else say(error, str(known), INPUT)
    except Exception as error:
        if _is_out_of_memory(error):
            return say(error, "out of memory; use a smaller batch or less data, or a machine with more memory", INPUT)
        return say(error, unexpected(error), UNEXPECTED)


def _with_signals(main: Main, argv: Sequence[str] | None, raised: Sequence[BaseException]) -> int:
    """Run `main`. A signal's exception wins, even if a library turned it into an error of its own."""
    try:
        return main(argv)
    except Exception:
        if raised:
            raise raised[0] from None
        raise


def _finished(status: int) -> int:
    """The status, after standard output was flushed: its reader may be gone, or the disk full."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _silence(sys.stdout)
        if status == 0 and not isinstance(error, BrokenPipeError):
            return say(error, f"cannot write the output: {reason_of(error)}", INPUT)
        return status or PIPE
    return status


def say(error: BaseException, text: str, status: int) -> int:
    """Print one line about an error, with its notes (such as what was kept), and return the status."""
    parts = [line.strip() for line in "\n".join([text, *getattr(error, "__notes__", [])]).split("\n")]
    line = "error: " + "; ".join(part.rstrip(";") for part in parts if part)
    try:
        print(shown(line), file=sys.stderr, flush=True)
    except (OSError, ValueError):  # the reader has closed the pipe
        _silence(sys.stderr)
    return status


def about(error: OSError) -> str:
    """An operating system's error as one sentence, with the files it names."""
    names = [shown(name) for name in (error.filename, error.filename2) if name is not None]
    where = f"{' and '.join(names)}: " if names else ""
    return f"{where}{reason_of(error)}"


def unexpected(error: BaseException) -> str:
    """The sentence for an unexpected error. The traceback is written to a file, which the sentence names."""
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
    """Whether rank 0, another process, reports what concerns all ranks."""
    return os.environ.get("RANK", "0") != "0"


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out. PyTorch raises an error of its own for a GPU, and a plain RuntimeError for the CPU."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


@contextmanager
def _stoppable(numbers: Sequence[signal.Signals]) -> Iterator[list[BaseException]]:
    """These signals raise exceptions inside the block. Another one within PATIENCE_S does not disturb the cleaning up.

    Yields a list to which every raised exception is appended. A signal that the process was told to ignore (`nohup`, a
    background job) stays ignored.
    """
    raised: list[BaseException] = []
    if threading.current_thread() is not threading.main_thread():
        yield raised
        return
    last = -PATIENCE_S

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PATIENCE_S:
            last = now
            raised.append(KeyboardInterrupt() if number == signal.SIGINT else Terminated(number))
            raise raised[-1]

    before = {number: handler for number in numbers if (handler := signal.getsignal(number)) != signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, stop)
        yield raised
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _leaving_at_once(numbers: Sequence[signal.Signals]) -> Iterator[None]:
    """These signals end the process at once inside the block, because libraries swallow exceptions during imports."""
    handled = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, leave) for number in handled}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _ignore() -> None:
    """Ignore the handled signals: from here on, Python would restore their default, which ends the process."""
    for number in _handled():
        signal.signal(number, signal.SIG_IGN)


def _handled() -> list[signal.Signals]:
    return [number for number in (*TO_STOP, signal.SIGUSR1) if callable(signal.getsignal(number))]


def _prepare_streams() -> None:
    """Open missing standard streams, and escape characters that the terminal's encoding lacks instead of failing.

    If a stream is closed (`2>&-`), the first file that is opened would get its number, and libraries would print
    into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lives
        elif hasattr(stream, "reconfigure"):
            with suppress(ValueError, OSError):
                stream.reconfigure(errors="backslashreplace")


def _silence(stream: Any) -> None:
    """Keep Python from complaining about the closed pipe again when it exits."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
