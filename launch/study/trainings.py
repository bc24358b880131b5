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
# settings that change speed or safety, but neither weights nor scores
_CHANGES_NOTHING = (
    *(f"data.{name}" for name in ("threads", "prefetch", "workers")),
    *(f"train.{name}" for name in ("save_every", "save_every_steps", "keep", "log_every")),
    *(f"train.{name}" for name in ("start_limit_s", "stall_limit_s")),
    "evaluation.ranked_lists",
)


class Training(NamedTuple):
    """One training: its run folder, its configuration file and what is set above it (without `run`)."""

    folder: Path
    file: Path
    settings: tuple[str, ...]

    def config(self) -> Config:
        """The resolved configuration. InputError for what a configuration refuses."""
        return load_config(self.file, [*self.settings, f"run={self.folder}"])

    def started(self) -> bool:
        return (self.folder / CONFIG_FILE).exists()

    def finished(self) -> bool:
        return (self.folder / REPORT_FILE).exists()  # which a training writes last

    def refuse_other_settings(self) -> None:
        """InputError if the folder has a training with other values: all rows of a table share one recipe."""
        config = self.config()
        if self.started():
            refuse_other_values(self.folder, load_config(self.folder / CONFIG_FILE, []), config)

    def settings_beside(self, names: Sequence[str]) -> tuple[str, ...]:
        """What is set above the file, without these keys."""
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
) -> bool:
    """Run them in order, `parallel` at a time; False when asked to stop. `ended` gets each one's exit status.

    One at a time writes to our output; several write to files beside their folders, <folder>.log. SIGTERM and SIGUSR1
    are passed on as SIGTERM, which every launcher gives to its ranks, and end the rest.
    """
    waiting, active, told = list(trainings), dict[Training, subprocess.Popen[bytes]](), False
    with _signals() as asked:
        try:
            while (waiting and not asked) or active:
                while waiting and len(active) < parallel and not asked:
                    one = waiting.pop(0)
                    active[one] = _start(one, parallel > 1, ranks, environment)
                if asked and not told:
                    told = True
                    for process in active.values():
                        process.terminate()
                for one, process in list(active.items()):
                    status = process.poll()
                    if status is None:
                        continue
                    del active[one]
                    ended(one, EXIT_STOPPED if asked and status != 0 else status)
                    if status == EXIT_STOPPED:
                        asked.append(status)
                time.sleep(0.1)
        finally:  # after an error here, no training keeps running unseen
            for process in active.values():
                process.terminate()
            for process in active.values():
                process.wait()
    return not asked


def _start(one: Training, to_file: bool, ranks: int, environment: Mapping[str, str] | None) -> subprocess.Popen[bytes]:
    one.folder.parent.mkdir(parents=True, exist_ok=True)
    variables = child_environment(**(environment or {}))
    # In a session of its own: Ctrl-C reaches us alone, and we ask it to save and stop.
    if not to_file:
        return subprocess.Popen(one.command(ranks), env=variables, start_new_session=True)
    with one.folder.with_name(one.folder.name + ".log").open("a") as log:
        return subprocess.Popen(
            one.command(ranks), env=variables, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that came while this was open."""
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
    """InputError unless both configurations train alike, apart from the keys in `aside`; it names one that differs.

    Settings of a module that is switched off in both do not count, nor do folders of files, nor settings that change
    neither weights nor scores. `where` names the older one, and `option` says which option leads to another place.
    """
    aside = (*aside, *_CHANGES_NOTHING)
    old, new = ({name: published(value) for name, value in one.effective().items()} for one in (before, now))
    other = [name for name in old.keys() | new.keys() if old.get(name) != new.get(name) and name not in aside]
    if other:
        name = min(other, key=lambda name: (not name.endswith(".enabled"), name))
        raise InputError(
            f"{where}: expected {name} = {old.get(name)}, with which this training was made, got {new.get(name)}; set"
            f" it back, or give another {option}"
        )
