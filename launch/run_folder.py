"""A run's folder: made once, locked while in use, with the resolved config and the circumstances in it."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launch.config import Config, dump_config
from tacaf import distributed, logs
from tacaf.checkpoint import mend, write_whole
from tacaf.vocabulary import InputError


@contextmanager
def open_run(config: Config, resume: bool) -> Iterator[Path]:
    """The run folder, on every rank; rank 0 makes, checks and locks it.

    A folder that already holds a run is only opened with `resume`; its config.yaml is then kept beside the new one,
    and every start is appended to environment.json.
    """
    folder = config.run
    if distributed.rank() != 0:
        distributed.barrier()
        yield folder
        return
    held = (folder / "config.yaml").exists()
    if held and not resume:
        raise InputError(
            f"run: {folder} already holds a run; add --resume to go on with it, or give another folder with --set"
            " run=..."
        )
    if resume and not held:
        raise InputError(f"--resume: expected a run in {folder}, found none; leave --resume out to start it")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"run: {folder} is being written by another process; wait for it or give another folder"
            ) from None
        mend(folder / "checkpoints")
        write_whole(folder / "config.yaml", dump_config(config))
        starts = (
            json.loads((folder / "environment.json").read_text())
            if held and (folder / "environment.json").exists()
            else []
        )
        starts.append(logs.environment(distributed.world_size()))
        write_whole(folder / "environment.json", json.dumps(starts, indent=1))
        distributed.barrier()
        yield folder
