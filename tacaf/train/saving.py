"""Checkpoints of a run: saved whole or not at all, found again, checked, and loaded into an engine."""

import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from tacaf import checkpoint, distributed
from tacaf.files import first_line
from tacaf.run_files import CHECKPOINTS_FOLDER
from tacaf.train import log_file
from tacaf.train.config import Config
from tacaf.train.ranges import Ranges
from tacaf.train.regroup import TEMPORARY, data_only, load_regrouped, regrouped
from tacaf.train.state import EPOCHS, SavedFacts, completed, extension
from tacaf.vocabulary import InputError

_OF_PYTORCHS_WRITER = re.compile("PytorchStreamWriter|inline_container")


class NotSavedError(Exception):
    """A checkpoint could not be written, on any rank; the run can continue and try again later."""


def save(
    engine: Any,
    folder: Path,
    global_step: int,
    facts: dict[str, Any],
    *,
    keep: int,
    best: bool = False,
    ranges: Ranges | None = None,
) -> None:
    """Save a whole checkpoint of this step, on all ranks together; `facts` are plain JSON, the same on every rank.

    NotSavedError on every rank if the disk has too little room; older checkpoints stay as they were.
    """
    distributed.average_batchnorm_statistics(engine.module)
    _refuse_full_disk(engine, ranges, folder, global_step)
    _write(engine, folder, global_step, facts)
    if ranges is not None:
        _write_ranges(ranges, folder, global_step)
    distributed.barrier()
    problem: str | None = None
    if distributed.rank() == 0:
        try:
            checkpoint.commit(folder, global_step, facts, keep, best)
        except (InputError, OSError) as error:
            problem = first_line(error)
    problem = distributed.gather_objects(problem)[0]
    if problem is not None:
        raise NotSavedError(f"checkpoint of step {global_step} not saved into {folder}: {problem}")


def _refuse_full_disk(engine: Any, ranges: Ranges | None, folder: Path, global_step: int) -> None:
    """NotSavedError on every rank if the disk has not the room for another checkpoint. Makes and tidies the folder."""
    lacking = 0
    with distributed.together():
        if distributed.rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            checkpoint.clear_temporary(folder)
            lacking = _bytes_needed(engine, ranges, folder) - shutil.disk_usage(folder).free
    lacking = int(max(row[0] for row in distributed.numbers_of_ranks([float(lacking)])))
    if lacking > 0:
        raise NotSavedError(
            f"checkpoint of step {global_step} not saved: {folder} lacks {lacking / 2**20:,.0f} MiB of free space; make"
            " room, or keep fewer with train.keep"
        )


def _write(engine: Any, folder: Path, global_step: int, facts: dict[str, Any]) -> None:
    """Every rank's files, under the temporary name."""
    try:
        engine.save_checkpoint(
            str(folder), tag=checkpoint.temporary_tag(global_step), client_state={"facts": facts}, save_latest=False
        )
    except (OSError, RuntimeError) as error:
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
            raise  # another rank has gone
        if distributed.world_size() > 1:  # the others may be waiting inside DeepSpeed
            raise InputError(
                f"checkpoint of step {global_step} not saved: rank {distributed.rank()} could not write into {folder}:"
                f" {_reason(error)}; older checkpoints are untouched; make room and start again with --resume"
            ) from None
        checkpoint.clear_temporary(folder)
        raise NotSavedError(
            f"checkpoint of step {global_step} not saved into {folder}: {_reason(error)}; older ones are untouched"
        ) from None


def _write_ranges(ranges: Ranges, folder: Path, global_step: int) -> None:
    """Every rank's range of the classifiers, beside DeepSpeed's files."""
    try:
        with distributed.together():
            ranges.save(folder / checkpoint.temporary_tag(global_step))
    except InputError as error:
        raise NotSavedError(
            f"checkpoint of step {global_step} not saved into {folder}: {error}; older ones are untouched"
        ) from None


def _reason(error: Exception) -> str:
    """Why a checkpoint was not written. PyTorch's own message only counts bytes that did not reach the file."""
    text = first_line(error)
    return (
        "PyTorch could not write all of its bytes; the disk may be full" if _OF_PYTORCHS_WRITER.search(text) else text
    )


def _bytes_needed(engine: Any, ranges: Ranges | None, folder: Path) -> int:
    """The size of the newest checkpoint; before the first one, of weights, ZeRO's copy of them and two states."""
    newest = checkpoint.steps_in(folder)
    if newest:
        return sum(path.stat().st_size for path in newest[-1].rglob("*") if path.is_file())
    numbers = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in engine.module.parameters())
    return 4 * 4 * numbers + (0 if ranges is None else ranges.bytes_of_checkpoint())


def find_checkpoint(config: Config, must_match: dict[str, Any], trusted: bool = False) -> Path | None:
    """The newest whole checkpoint of a run, on every rank; rank 0 finds and checks it before anything is built.

    None if there is none yet: a run that was killed before its first save starts again. InputError for a checkpoint
    made with other settings, except that it may have fewer epochs and lack newer settings; and, unless `trusted`, for
    one that somebody else may have made.
    """
    folder = config.run / CHECKPOINTS_FOLDER
    path: Path | None = None
    with distributed.together():
        if distributed.rank() == 0 and checkpoint.steps_in(folder):
            path = checkpoint.newest_whole(folder, log_file.warn, SavedFacts)
            if path is None:
                raise InputError(
                    f"--resume: expected a whole checkpoint in {folder}, found damaged ones only; copy one back, or"
                    " start a new run"
                )
            saved = checkpoint.facts_of(path)
            if extension(saved, config):
                saved[EPOCHS] = must_match[EPOCHS]
            checkpoint.refuse_other(completed(saved, config), must_match, path)
            if not trusted:
                checkpoint.refuse_strange(path)
    return distributed.gather_objects(path)[0]


def resume(engine: Any, path: Path, ranges: Ranges | None = None) -> dict[str, Any]:
    """Load a checkpoint that `find_checkpoint` found into an engine that was built for it. Returns its facts."""
    facts = checkpoint.facts_of(path)
    try:
        if engine.load_universal_checkpoint():
            with distributed.together():
                if distributed.rank() == 0:
                    _regroup(path, engine)
            load_regrouped(engine, path.parent / TEMPORARY / path.name)
        else:
            with data_only():
                loaded, _ = engine.load_checkpoint(str(path.parent), tag=path.name)
            if loaded is None:
                raise InputError(
                    f"{path} could not be loaded although its files are whole; it may be of another DeepSpeed version"
                )
    except pickle.UnpicklingError as error:
        raise _not_data(path, error) from None
    if ranges is not None:
        with distributed.together():
            ranges.load(path, facts["ranks"])
    return facts


def _regroup(path: Path, engine: Any) -> None:
    try:
        regrouped(path, engine.zero_optimization_stage())
    except pickle.UnpicklingError as error:
        raise _not_data(path, error) from None


def _not_data(path: Path, error: Exception) -> InputError:
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    what = f"refers to {found[1]}, which is code" if found else f"cannot be read as data ({first_line(error)})"
    return InputError(f"{path} {what}; a checkpoint holds tensors and plain values only. It was not loaded")
