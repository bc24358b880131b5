"""Runs the parts of one call inside its time: a part that fails or is stopped never loses another's results."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from perf.calls.child import NOT_MEASURED
from perf.calls.machine import missing
from perf.calls.plan import Call, Command, Part
from tacaf.child_processes import ROOT, child_environment

GRACE_S = 4  # between asking a part to stop and killing it
TOO_SHORT_S = 5  # a part is not started with less time than this


def time_for(place: int, parts: tuple[Part, ...], left_s: float) -> float:
    """Seconds that a part may take: at most its own most, and what the later parts need stays for them."""
    kept = sum(part.least_s for part in parts[place + 1 :])
    return min(parts[place].most_s, max(left_s - kept, min(parts[place].least_s, left_s)))


def run_part(
    part: Part, out: Path, limit_s: float, variables: dict[str, str], rehearse: bool = False
) -> dict[str, Any]:
    """Run one part; the output of its commands goes to OUT/<part>.txt as it comes. Its row in the summary."""
    began = time.monotonic()
    lacking = missing(part.needs)
    if lacking:
        return _row(part, f"not measured: {', '.join(lacking)}", began)
    if limit_s < TOO_SHORT_S:
        return _row(part, "not measured: no time left", began)
    for old in out.glob(f"{part.name}*.json"):
        old.unlink()
    commands = part.commands[:1] if rehearse else part.commands
    logs = [out / (f"{part.name}.txt" if len(commands) == 1 else f"{part.name}.{k}.txt") for k in range(len(commands))]
    words = [words_of(command, part, out, rehearse) for command in commands]
    with _started(words, logs, variables) as processes:
        stopped = not _wait(processes, began + limit_s - GRACE_S)
        if stopped:
            _stop(processes)
    if stopped:
        return _row(part, f"stopped after {limit_s:.0f} s", began)
    return _row(part, _state([process.returncode for process in processes], logs), began)


def _row(part: Part, state: str, began: float) -> dict[str, Any]:
    return {"part": part.name, "state": state, "seconds": round(time.monotonic() - began, 1)}


def words_of(command: Command, part: Part, out: Path, rehearse: bool) -> list[str]:
    """The command line of one of a part's commands."""
    module, *arguments = (word.format(out=out, part=part.name) for word in command)
    start = [sys.executable, "-m", "perf.calls.child"]
    if not rehearse:
        return [*start, module, *arguments]
    return [*start, *(["--fake-gpu"] if part.fake else []), part.small or module, *arguments, *part.rehearsal]


@contextmanager
def _started(
    commands: list[list[str]], logs: list[Path], variables: dict[str, str]
) -> Iterator[list[subprocess.Popen]]:
    """The part's processes, each the leader of a group of its own; nothing of them is left afterwards."""
    processes: list[subprocess.Popen] = []
    files: list[IO[bytes]] = []
    try:
        for words, log in zip(commands, logs, strict=True):
            files.append(log.open("wb"))
            processes.append(
                subprocess.Popen(
                    words, cwd=ROOT, env=child_environment(**variables), stdin=subprocess.DEVNULL,
                    stdout=files[-1], stderr=subprocess.STDOUT, start_new_session=True,
                )
            )  # fmt: skip
        yield processes
    finally:
        for process in processes:
            _signal(process, signal.SIGKILL)
            process.wait()
        for file in files:
            file.close()


def _wait(processes: list[subprocess.Popen], until: float) -> bool:
    """Whether all of them have ended by then."""
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
    return True


def _stop(processes: list[subprocess.Popen]) -> None:
    """Ask every group to stop and give it a moment; whoever started them kills what is left."""
    for process in processes:
        _signal(process, signal.SIGTERM)
    _wait(processes, time.monotonic() + GRACE_S)


def _signal(process: subprocess.Popen, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _state(statuses: list[int], logs: list[Path]) -> str:
    """What became of a part whose commands have ended."""
    for status, log in zip(statuses, logs, strict=True):
        if status not in (0, NOT_MEASURED):
            return f"failed with {status}: {last_line(log)}"
    if NOT_MEASURED in statuses:
        return f"not measured: {last_line(logs[statuses.index(NOT_MEASURED)])}"
    return "passed"


def last_line(log: Path) -> str:
    """The last line that says something, without blanks and at most 200 characters long."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it printed nothing"


def run_call(call: Call, out: Path, variables: dict[str, str], rehearse: bool = False) -> Iterator[dict[str, Any]]:
    """Every part of the call, inside its limit; a row as each ends."""
    end = time.monotonic() + call.limit_s
    for place, part in enumerate(call.parts):
        yield run_part(part, out, time_for(place, call.parts, end - time.monotonic()), variables, rehearse)
