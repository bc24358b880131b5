"""A run's folder: made once, locked while in use, with the resolved config and the circumstances in it."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from launch.config import Config, dump_config
from tacaf import distributed, logs
from tacaf.checkpoint import mend
from tacaf.files import locked, shown, write_whole
from tacaf.vocabulary import InputError


@contextmanager
def open_run(config: Config, resume: bool) -> Iterator[Path]:
    """The run folder, on every rank; rank 0 makes, checks and locks it.

    A folder that already holds a run is only opened with `resume`.
    """
    folder = config.run
    with ExitStack() as held:
        with distributed.together():
            if distributed.rank() == 0:
                _refuse_wrong(folder, resume)
                folder.mkdir(parents=True, exist_ok=True)
                busy = f"run: {shown(folder)} is being written by another process; wait for it or give another folder"
                held.enter_context(locked(folder / ".lock", wait=False, busy=busy))
                mend(folder / "checkpoints")
                shutil.rmtree(folder / "ranks", ignore_errors=True)  # signs of life of an earlier start
        yield folder


def _refuse_wrong(folder: Path, resume: bool) -> None:
    try:
        str(folder).encode()
    except UnicodeEncodeError:  # safetensors would read no model there, after the whole training
        raise InputError(f"run: expected a folder whose name is UTF-8, got {shown(folder)}; give another") from None
    held = (folder / "config.yaml").exists()
    if held and not resume:
        raise InputError(
            f"run: {folder} already holds a run; add --resume to go on with it, or give another folder with --set"
            " run=..."
        )
    if resume and not held:
        raise InputError(f"--resume: expected a run in {folder}, found none; leave --resume out to start it")


def record_start(config: Config) -> None:
    """Write the resolved config and append the circumstances; after a checkpoint was accepted, on rank 0.

    A config.yaml that says otherwise stays beside the new one as config-<n>.yaml.
    """
    if distributed.rank() != 0:
        return
    path, starts_path = config.run / "config.yaml", config.run / "environment.json"
    starts = json.loads(starts_path.read_text()) if starts_path.exists() else []
    text = dump_config(config)
    if path.exists() and path.read_text() != text:
        path.rename(config.run / f"config-{len(starts)}.yaml")
    write_whole(path, text)
    write_whole(starts_path, json.dumps([*starts, logs.environment(distributed.world_size())], indent=1))
