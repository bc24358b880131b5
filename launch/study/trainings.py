"""Trainings as child processes: finished ones are kept, started ones are resumed, and signals are passed on."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from tacaf.child_processes import child_environment
from tacaf.command import EXIT_STOPPED
from tacaf.provenance import published
from tacaf.run_files import CONFIG_FILE, REPORT_FILE
from tacaf.train.config import Config, load_config
from tacaf.vocabulary import InputError

SCRIPT = Path(__file__).parent.parent / "train.py"
# Settings that affect speed or safety, but neither weights nor scores.
_CHANGES_NOTHING = (
    *(f"data.{name}" for name in ("threads", "prefetch", "workers")),
    *(f"train.{name}" for name in ("save_every", "save_every_steps", "keep", "log_every")),
    *(f"train.{name}" for name in ("start_limit_s", "stall_limit_s")),
    "evaluation.ranked_lists",
)


class Training(NamedTuple):
    """One training: its run folder, its configuration file and the settings that override it (without `run`)."""

    folder: Path
    file: Path
    settings: tuple[str, ...]

    def config(self) -> Config:
        """The resolved configuration. Raises InputError if it is not valid."""
        return load_config(self.file, [*self.settings, f"run={self.folder}"])

    def started(self) -> bool:
        return (self.folder / CONFIG_FILE).exists()

    def finished(self) -> bool:
        return (self.folder / REPORT_FILE).exists()  # a training writes the report last

    def refuse_other_settings(self) -> None:
        """Raise InputError if the folder has a training with other values, because a table's rows share one recipe."""
        config = self.config()
        if self.started():
            refuse_other_values(self.folder, load_config(self.folder / CONFIG_FILE, []), config)

    def settings_beside(self, names: Sequence[str]) -> tuple[str, ...]:
        """The settings that override the file, without these keys."""
        return tuple(setting for setting in self.settings if setting.partition("=")[0] not in names)

    def command(self, ranks: int) -> list[str]:
        """The command line that starts or resumes it with `ranks` ranks on this machine."""
        starter = [sys.executable]
        if ranks > 1:
            starter += [str(SCRIPT.with_name("local_ranks.py")), str(ranks)]
        words = [str(SCRIPT), "--config", str(self.file)]
        for setting in (*self.settings, f"run={self.folder}"):
            words += ["--set", setting]
        return [*starter, *words, *(["--resume"] if self.started() else [])]


def run_all(
    trainings: Sequence[Training],
    ended: Callable[[Training, int], None],
    parallel: int = 1,
    ranks: int = 1,
    environment: Mapping[str, str] | None = None,
    then: Callable[[Training], list[str] | None] = lambda _: None,
) -> bool:
    """Run the trainings in order, `parallel` at a time. `ended` gets the exit status of each.

    then: the command to run after a training has finished, in its place among the `parallel`, or None. `ended` waits
    for it and gets its status. Of a training that was finished before, only this command is run.

    Returns False if the command was told to stop: SIGTERM and SIGUSR1 are passed on to the running trainings as
    SIGTERM, which every launcher passes to its ranks, and no further training is started. With `parallel` 1, trainings
    write to our output; otherwise each writes to a file beside its folder, <folder>.log.
    """
    waiting, active, told = [*trainings], dict[Training, _Running](), False
    variables = child_environment(**(environment or {}))

    def start(one: Training) -> None:
        trains = not one.finished()
        command = one.command(ranks) if trains else then(one)
        if command is None:
            ended(one, 0)
        else:
            active[one] = _Running(_start(one, command, parallel > 1, variables), trains)

    with _signals() as asked:
        try:
            while (waiting and not asked) or active:
                while waiting and len(active) < parallel and not asked:
                    start(waiting.pop(0))
                if asked and not told:
                    told = True
                    for running in active.values():
                        running.process.terminate()
                for one, running in list(active.items()):
                    status = running.process.poll()
                    if status is None:
                        continue
                    del active[one]
                    more = running.trains and status == 0 and one.finished() and then(one) is not None
                    if more and not asked:
                        start(one)
                        continue
                    ended(one, EXIT_STOPPED if asked and (status != 0 or more) else status)
                    if status == EXIT_STOPPED:
                        asked.append(status)
                time.sleep(0.1)
        finally:  # after an error here, no training may keep running in the background
            for running in active.values():
                running.process.terminate()
            for running in active.values():
                running.process.wait()
    return not asked


class _Running(NamedTuple):
    """A child process that trains, or that does what follows a training."""

    process: subprocess.Popen[bytes]
    trains: bool


def _start(one: Training, command: list[str], to_file: bool, variables: dict[str, str]) -> subprocess.Popen[bytes]:
    one.folder.parent.mkdir(parents=True, exist_ok=True)
    # In its own session, so that Ctrl-C reaches only this process, which then tells the training to save and stop.
    if not to_file:
        return subprocess.Popen(command, env=variables, start_new_session=True)
    with one.folder.with_name(one.folder.name + ".log").open("a") as log:
        return subprocess.Popen(command, env=variables, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list to which signals that arrive inside the block are appended."""
    asked: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def refuse_other_values(
    where: object, before: Config, now: Config, aside: Sequence[str] = (), option: str = "--out"
) -> None:
    """Raise InputError, naming a setting, unless both configurations train alike, apart from the keys in `aside`.

    Settings of a module that is disabled in both are ignored, and so are folders of files and settings that affect
    neither weights nor scores. `where` names the older configuration, `option` the option that selects another folder.
    """
    aside = (*aside, *_CHANGES_NOTHING)
    old, new = ({name: published(value) for name, value in one.effective().items()} for one in (before, now))
    other = [name for name in old.keys() | new.keys() if old.get(name) != new.get(name) and name not in aside]
    if other:
        name = min(other, key=lambda name: (not name.endswith(".enabled"), name))
        raise InputError(
            f"{where}: expected {name} = {old.get(name)}, with which this training was made, got {new.get(name)};"
            f" restore the value, or give another {option}"
        )
