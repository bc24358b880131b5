"""Runs the parts of one call within its limit; if a part fails or is stopped, no other part loses its results."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from perf.calls.child import NOT_MEASURED
from perf.calls.machine import missing
from perf.calls.plan import Call, Command, Part
from tacaf.child_processes import ROOT, child_environment

GRACE_S = 4  # between asking a part to stop and killing it
TOO_SHORT_S = 5  # a part is not started with less time than this
TICK_S = 5


def _nothing(part: str) -> None:
    pass


@dataclass(frozen=True)
class Place:
    """Where and how the parts of a call run.

    folder: for the parts' own files: <part>.json, and <part>.txt with their output.
    variables: added to their environment.
    tick: called with the part's name every few seconds while it runs.
    """

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    rehearse: bool = False
    tick: Callable[[str], None] = _nothing


def run_call(call: Call, place: Place) -> Iterator[dict[str, Any]]:
    """Run every part of the call within its limit, and yield a row as each ends."""
    end = time.monotonic() + call.limit_s
    passed: set[str | None] = set()
    for k, part in enumerate(call.parts):
        if part.unless_passed in passed:
            row = {"part": part.name, "state": f"left out: {part.unless_passed} measured the same", "seconds": 0.0}
        else:
            row = run_part(part, place, time_for(k, call.parts, end - time.monotonic()))
        if row["state"] == "passed":
            passed.add(part.name)
        yield row


def time_for(k: int, parts: tuple[Part, ...], left_s: float) -> float:
    """Seconds that part k may take: at most its `most_s`, and no time that later parts need."""
    kept = sum(part.least_s for part in parts[k + 1 :])
    return min(parts[k].most_s, max(left_s - kept, min(parts[k].least_s, left_s)))


def run_part(part: Part, place: Place, limit_s: float) -> dict[str, Any]:
    """Run one part within its time; returns its row for the summary."""
    began = time.monotonic()
    for old in place.folder.glob(f"{part.name}.*"):
        old.unlink()
    if lacking := missing(part.needs):
        state = f"not measured: {', '.join(lacking)}"
    elif limit_s < TOO_SHORT_S:
        state = "not measured: no time left"
    else:
        state = _state_after(part, place, began, limit_s)
    return {"part": part.name, "state": state, "seconds": round(time.monotonic() - began, 1)}


def _state_after(part: Part, place: Place, began: float, limit_s: float) -> str:
    """Run the part's commands at the same time. Returns how they ended."""
    commands = part.commands[:1] if place.rehearse else part.commands
    numbers = [""] if len(commands) == 1 else [f".{k}" for k in range(len(commands))]
    logs = [place.folder / f"{part.name}{number}.txt" for number in numbers]
    words = [words_of(command, part, place, limit_s - 2 * GRACE_S) for command in commands]
    with _started(words, logs, place.variables) as processes:
        if not _wait(processes, began + limit_s - GRACE_S, lambda: place.tick(part.name)):
            _stop(processes)
            return f"stopped after {limit_s:.0f} s"
    return _state([process.returncode for process in processes], logs)


def words_of(command: Command, part: Part, place: Place, limit_s: float) -> list[str]:
    """The command line of one of a part's commands."""
    values = {"out": place.folder, "part": part.name, "limit_s": int(limit_s), "set": place.folder.parent / "set"}
    module, *arguments = (word.format_map(values) for word in command)
    start = [sys.executable, "-m", "perf.calls.child"]
    if not place.rehearse:
        return [*start, module, *arguments]
    return [*start, *(["--fake-gpu"] if part.fake else []), module, *arguments, *part.rehearsal]


@contextmanager
def _started(
    commands: list[list[str]], logs: list[Path], variables: dict[str, str]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start the processes, each in its own process group; none of them outlives the block."""
    processes: list[subprocess.Popen[bytes]] = []
    files: list[IO[bytes]] = []
    try:
        for words, log in zip(commands, logs, strict=True):
            files.append(log.open("wb"))
            processes.append(
                subprocess.Popen(
                    words,
                    cwd=ROOT,
                    env=child_environment(**variables),
                    stdin=subprocess.DEVNULL,
                    stdout=files[-1],
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        yield processes
    finally:
        for process in processes:
            _signal(process, signal.SIGKILL)
            process.wait()
        for file in files:
            file.close()


def _wait(processes: list[subprocess.Popen[bytes]], until: float, tick: Callable[[], None]) -> bool:
    """Wait for the processes. Returns whether all of them ended in time."""
    for process in processes:
        while process.poll() is None:
            left_s = until - time.monotonic()
            if left_s <= 0:
                return False
            try:
                process.wait(min(left_s, TICK_S))
            except subprocess.TimeoutExpired:
                tick()
    return True


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """Ask every group to stop and wait briefly; the caller kills those that are left."""
    for process in processes:
        _signal(process, signal.SIGTERM)
    _wait(processes, time.monotonic() + GRACE_S, lambda: None)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _state(statuses: list[int], logs: list[Path]) -> str:
    """The state of a part whose commands have all ended."""
    for status, log in zip(statuses, logs, strict=True):
        if status not in (0, NOT_MEASURED):
            return f"failed with {status}: {last_line(log)}"
    if NOT_MEASURED in statuses:
        return f"not measured: {last_line(logs[statuses.index(NOT_MEASURED)])}"
    return "passed"


def last_line(log: Path) -> str:
    """The last line that is not blank, at most 200 characters of it."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it printed nothing"
