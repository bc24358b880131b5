"""Attacks every command with hostile arguments, full disks and signals."""

import contextlib
import importlib
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from perf.attacks.command_lines import NUMBERS, UNREADABLE, UNWRITABLE, WORDS, Command, commands
from perf.attacks.outcome import Try, command_ended
from tacaf.child_processes import ROOT, child_environment

MOST_SECONDS = 40
FILE_LIMIT = 2048  # bytes that a process may write to a file, as on a full disk


def hostile_arguments(workshop: Path) -> Iterator[Try]:
    """Try every option of every command with every hostile value, in this process."""
    (workshop / "out").mkdir(exist_ok=True)
    odd = _odd_places(workshop)
    for command in commands(workshop):
        values = [
            *((option, value) for option in command.reads for value in UNREADABLE),
            *((option, value) for option in command.writes for value in UNWRITABLE),
            *((option, value) for option in command.numbers for value in NUMBERS),
            *((option, value) for option in command.choices for value in WORDS),
        ]
        for option, value in values:
            for name, place in odd.items():
                value = value.replace(name, place)
            words = _with(command.words, option, value)
            name = f"{command.module} {option} {value[:40]!r}"
            # A value that happens to be valid is not a finding; only the form of a refusal is judged.
            yield command_ended("arguments", name, *_in_process(command.module, words), allowed=(0, 1, 2))


def full_disk(workshop: Path) -> Iterator[Try]:
    """Run every command that writes in a process whose files are limited to FILE_LIMIT bytes; an old file must stay."""
    for command in commands(workshop):
        for option in command.writes:
            target = Path(command.words[command.words.index(option) + 1]) if option in command.words else None
            if target is None or target.suffix == "":
                continue
            before = b"the older file\n" * 400 if target.suffix != ".index" else b""
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(before) if before else target.unlink(missing_ok=True)
            status, out, errors = _in_child(command, full=True)
            found = command_ended("full disk", f"{command.module} {option}", status, out, errors, allowed=(0, 2))
            yield _unchanged(found, target, before, status)


def signals(workshop: Path, tries: int, seed: int) -> Iterator[Try]:
    """Send SIGINT and SIGTERM at random moments; expected are one line, the right status and no temporary file."""
    draw = random.Random(seed)
    chosen = [command for command in commands(workshop) if command.module != "launch.train"]
    for number in range(tries):
        command, kind = chosen[number % len(chosen)], (signal.SIGINT, signal.SIGTERM)[number // len(chosen) % 2]
        after_s = draw.uniform(0.15, 6)
        shutil.rmtree(workshop / "out", ignore_errors=True)  # output of earlier tries
        (workshop / "out").mkdir()
        status, out, errors = _in_child(command, stop=(kind, after_s))
        name = f"{command.module} {command.words[0]}, {kind.name} after {after_s:.2f} s"
        if status == -signal.SIGTERM and not out and not errors:  # Python itself had not started yet
            status = 0
        found = command_ended("signals", name, status, out, errors, allowed=(0, 128 + kind))
        left = [path.name for path in workshop.rglob(".*") if path.name.endswith((".partial", ".tmp"))]
        yield found._replace(verdict="silent", detail=f"left behind: {left[:3]}") if found.held and left else found


def _unchanged(found: Try, target: Path, before: bytes, status: int | None) -> Try:
    left = [path.name for path in target.parent.iterdir() if path.name.startswith(f".{target.name}.")]
    lost = status != 0 and before and target.read_bytes() != before
    if found.held and (left or lost):
        return found._replace(verdict="silent", detail="the old file was changed" if lost else f"left behind: {left}")
    return found


def _odd_places(workshop: Path) -> dict[str, str]:
    """Placeholders in the hostile values -> paths of a folder, an empty file, a file of garbage and a named pipe."""
    folder = workshop / "odd"
    (folder / "folder").mkdir(parents=True, exist_ok=True)
    (folder / "folder" / "inside").write_text("x")
    (folder / "empty").write_bytes(b"")
    (folder / "garbage").write_bytes(random.Random(0).randbytes(5000))
    if not (folder / "fifo").exists():
        os.mkfifo(folder / "fifo")
    return {
        "{FOLDER}": str(folder / "folder"),
        "{EMPTY}": str(folder / "empty"),
        "{GARBAGE}": str(folder / "garbage"),
        "{FIFO}": str(folder / "fifo"),
    }


def _with(words: Sequence[str], option: str, value: str) -> list[str]:
    """The words with another value for the option; "" means the positional argument."""
    changed = list(words)
    if not option:
        changed[1] = value
    elif option in changed:
        changed[changed.index(option) + 1] = value
    else:
        changed += [option, value]
    return changed


class _TooLong(BaseException):
    """A command did not end in time; a BaseException, so that no handler of the command catches it."""


def _in_process(module: str, words: Sequence[str]) -> tuple[int | None, str, str]:
    out, errors = io.StringIO(), io.StringIO()

    def stop(number: int, frame: FrameType | None) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(MOST_SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            status = importlib.import_module(module).main(list(words))
    except SystemExit as end:  # --help and the like
        status = end.code if isinstance(end.code, int) else 1
    except _TooLong:
        status = None
    except Exception:
        return 1, out.getvalue(), traceback.format_exc()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return status, out.getvalue(), errors.getvalue()


def _in_child(
    command: Command, full: bool = False, stop: tuple[signal.Signals, float] | None = None
) -> tuple[int | None, str, str]:
    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background processes ignore it
        if full:
            resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))

    process = subprocess.Popen(
        [sys.executable, "-m", command.module.removesuffix(".__main__"), *command.words],
        cwd=ROOT,
        text=True,
        env=child_environment(OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=prepare,
    )
    with process:
        if stop:
            time.sleep(stop[1])
            process.send_signal(stop[0])
        try:
            out, errors = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            process.kill()
            return None, *process.communicate()
    return process.returncode, out, errors
