"""A run's folder: made once, locked while in use, with the resolved config and the circumstances in it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tacaf import distributed, provenance
from tacaf.checkpoint import mend
from tacaf.files import locked, reason_of, shown, write_whole
from tacaf.model.file import MODEL
from tacaf.run_files import add_start, unused
from tacaf.train.config import Config, dump_config
from tacaf.vocabulary import InputError

CONFIG, METRICS, ENVIRONMENT = "config.yaml", "metrics.jsonl", "environment.json"
# What a run writes, by what it has to be where it is already there.
_FILES = (CONFIG, METRICS, ENVIRONMENT, ".lock", MODEL, "best.safetensors", "report.html")
_FOLDERS = ("checkpoints", "ranks", "results", "watch")


@contextmanager
def open_run(config: Config, resume: bool) -> Iterator[Path]:
    """The run folder, on every rank; rank 0 makes, checks and locks it.

    A folder that already holds a run is only opened with `resume`. InputError for one that cannot be written.
    """
    folder = config.run
    with ExitStack() as held:
        with distributed.together():
            if distributed.rank() == 0:
                _refuse_wrong(folder, resume)
                _make(folder)
                busy = f"run: {shown(folder)} is being written by another process; wait for it or give another folder"
                held.enter_context(locked(folder / ".lock", wait=False, busy=busy))
                mend(folder / "checkpoints")
                shutil.rmtree(folder / "ranks", ignore_errors=True)  # signs of life of an earlier start
        yield folder


def _refuse_wrong(folder: Path, resume: bool) -> None:
    try:
        str(folder).encode()
        held = (folder / CONFIG).exists()
        wrong = [name for name in _FILES if os.path.lexists(folder / name) and not (folder / name).is_file()]
        wrong += [name for name in _FOLDERS if os.path.lexists(folder / name) and not (folder / name).is_dir()]
    except UnicodeEncodeError:  # safetensors would read no model there, after the whole training
        raise InputError(f"run: expected a folder whose name is UTF-8, got {shown(folder)}; give another") from None
    except (OSError, ValueError) as error:
        raise InputError(f"run: cannot use {shown(folder)}: {reason_of(error)}") from None
    if wrong:
        what = "file" if wrong[0] in _FILES else "folder"
        raise InputError(f"run: {shown(folder / wrong[0])} is not a {what}; move it away, for the run needs that name")
    if held and not resume:
        raise InputError(
            f"run: {folder} already holds a run; add --resume to go on with it, or give another folder with --set"
            " run=..."
        )
    if resume and not held:
        raise InputError(f"--resume: expected a run in {folder}, found none; leave --resume out to start it")


def _make(folder: Path) -> None:
    """InputError for a place where no folder can be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"run: cannot make the folder {shown(folder)}: {reason_of(error)}") from None


def record_start(config: Config) -> str | None:
    """Write the resolved config and append the circumstances; after a checkpoint was accepted, on rank 0.

    A config.yaml that says otherwise stays beside the new one as config-<n>.yaml. What is to be said of a file that
    could not be read, else None.
    """
    said = None
    with distributed.together():
        if distributed.rank() == 0:
            path, data = config.run / CONFIG, dump_config(config).encode()
            if path.exists() and path.read_bytes() != data:
                path.rename(unused(path))
            write_whole(path, data)
            said = add_start(config.run / ENVIRONMENT, provenance.environment(distributed.world_size()))
    return said
