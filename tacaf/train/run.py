"""A run: the objects that its loop, its evaluations and its end share, and its folder, which is locked while in use."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from tacaf import distributed, provenance
from tacaf.checkpoint import mend
from tacaf.data.index import ShardIndex
from tacaf.data.plan import Plan
from tacaf.data.training_pipeline import TrainingPipeline
from tacaf.files import locked, reason_of, shown, write_whole
from tacaf.model.file import MODEL
from tacaf.run_files import (
    BEST_MODEL_FILE,
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    HEARTBEATS_FOLDER,
    LOG_FILE,
    METRICS_FILE,
    REPORT_FILE,
    RESULTS_FOLDER,
    WATCH_FOLDER,
    Start,
    add_start,
    unused,
)
from tacaf.train.config import Config, dump_config
from tacaf.train.processes import Place
from tacaf.train.ranges import Ranges
from tacaf.train.run_log import RunLog
from tacaf.train.state import TrainState
from tacaf.train.step import Compute
from tacaf.train.step_reader import StepReader
from tacaf.train.stop import StopRequest
from tacaf.train.watchdog import Watchdog
from tacaf.vocabulary import InputError

T = TypeVar("T")

# The names that a run writes, by whether they must be files or folders if they already exist.
_FILES = (CONFIG_FILE, METRICS_FILE, LOG_FILE, ENVIRONMENT_FILE, ".lock", MODEL, BEST_MODEL_FILE, REPORT_FILE)
_FOLDERS = (CHECKPOINTS_FOLDER, HEARTBEATS_FOLDER, RESULTS_FOLDER, WATCH_FOLDER)


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The data that a run trains on."""

    index: ShardIndex
    plan: Plan
    steps_per_epoch: int

    @property
    def identities(self) -> int:
        return self.plan.training_set.identities


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run on this rank: the objects that its loop, evaluations and end share. Built once, by launch/train.py.

    The run's progress is not part of it: that is a `TrainState`, which every step replaces.
    """

    config: Config
    place: Place
    data: TrainingData
    engine: Any  # DeepSpeed's, around the model
    optimizer: torch.optim.Optimizer
    ranges: Ranges | None  # of the classifiers, if each rank keeps a range of the identities
    compute: Compute
    batches: TrainingPipeline
    first: TrainState  # where this start begins
    resumed: bool  # whether that state came from a checkpoint
    log: RunLog
    reader: StepReader
    stop: StopRequest
    dog: Watchdog

    @property
    def folder(self) -> Path:
        return self.config.run

    def watched(self, batches: Iterable[T], shared: int) -> Iterator[T]:
        """The batches of an evaluation. Reports progress after each; raises StoppedError if the run was told to stop.

        The ranks agree on that after each of the first `shared` batches, which every rank must have.
        """
        return self.stop.between(batches, shared, self.dog.moving)


@contextmanager
def open_folder(config: Config, resume: bool) -> Iterator[Path]:
    """The run folder, on every rank. Rank 0 creates, checks and locks it.

    A folder with a run in it is only opened with `resume`. Raises InputError if the folder cannot be written.
    """
    folder = config.run
    with ExitStack() as held:
        with distributed.together():
            if distributed.rank() == 0:
                _refuse_wrong(folder, resume)
                _make(folder)
                busy = f"run: {shown(folder)} is being written by another process; wait for it or give another folder"
                held.enter_context(locked(folder / ".lock", wait=False, busy=busy))
                mend(folder / CHECKPOINTS_FOLDER)
                shutil.rmtree(folder / HEARTBEATS_FOLDER, ignore_errors=True)  # heartbeats of an earlier start
        yield folder


def _refuse_wrong(folder: Path, resume: bool) -> None:
    try:
        str(folder).encode()
        held = (folder / CONFIG_FILE).exists()
        wrong = [name for name in _FILES if os.path.lexists(folder / name) and not (folder / name).is_file()]
        wrong += [name for name in _FOLDERS if os.path.lexists(folder / name) and not (folder / name).is_dir()]
    except UnicodeEncodeError:  # safetensors could not read the model there after the training
        raise InputError(f"run: expected a folder whose name is UTF-8, got {shown(folder)}; give another") from None
    except (OSError, ValueError) as error:
        raise InputError(f"run: cannot use {shown(folder)}: {reason_of(error)}") from None
    if wrong:
        what = "file" if wrong[0] in _FILES else "folder"
        raise InputError(
            f"run: {shown(folder / wrong[0])} is not a {what}; move it away, because the run needs that name"
        )
    if held and not resume:
        raise InputError(
            f"run: {folder} already has a run in it; add --resume to continue it, or give another folder with"
            " --set run=..."
        )
    if resume and not held:
        raise InputError(f"--resume: there is no run in {folder}; leave --resume out to start one")


def _make(folder: Path) -> None:
    """Create the folder. Raises InputError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"run: cannot create the folder {shown(folder)}: {reason_of(error)}") from None


def record_start(config: Config) -> str | None:
    """Write the resolved config and append the circumstances, on rank 0. Call it after a checkpoint was accepted.

    A config.yaml with other content is kept as config-<n>.yaml. Returns a warning if environment.json could not be
    read, otherwise None.
    """
    warning = None
    with distributed.together():
        if distributed.rank() == 0:
            path, data = config.run / CONFIG_FILE, dump_config(config).encode()
            if path.exists() and path.read_bytes() != data:
                path.rename(unused(path))
            write_whole(path, data)
            warning = add_start(
                config.run / ENVIRONMENT_FILE, Start(**provenance.environment(distributed.world_size()))
            )
    return warning
