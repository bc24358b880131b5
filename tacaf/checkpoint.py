"""Checkpoints that are whole or not there: temporary name, manifest with hashes, rename, then `latest`.

A checkpoint is a folder `checkpoints/step-00001234`. Whoever writes its files (DeepSpeed, on all ranks) writes them
under the temporary name; `commit` makes it real on rank 0. Loading unpickles, so only a user's own checkpoints are
ever loaded; what is published is safetensors.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tacaf.files import sha256_of, write_whole
from tacaf.vocabulary import InputError

MANIFEST = "manifest.json"
LATEST = "latest"
OLD = ".old-"


def tag_of(global_step: int) -> str:
    return f"step-{global_step:08d}"


def temporary_tag(global_step: int) -> str:
    return f".tmp-{tag_of(global_step)}"


def clear_temporary(folder: Path) -> None:
    """Remove what a killed save left behind."""
    for path in folder.glob(".tmp-*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def mend(folder: Path) -> None:
    """After a kill in mid-commit: a checkpoint that had been moved aside for its successor comes back."""
    for old in folder.glob(f"{OLD}*"):
        final = folder / old.name.removeprefix(OLD)
        shutil.rmtree(old) if final.exists() else old.rename(final)


def commit(folder: Path, global_step: int, facts: dict, keep: int, best: bool = False) -> Path:
    """Make the temporary checkpoint of this step real (rank 0 only, after a barrier), and drop old ones.

    `facts` go into the manifest in plain JSON, so that a checkpoint can be judged before anything is unpickled.
    Keeps the newest `keep` checkpoints and the one named in `best`.
    """
    temporary, final = folder / temporary_tag(global_step), folder / tag_of(global_step)
    files = {
        str(path.relative_to(temporary)): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(temporary.rglob("*"))
        if path.is_file()
    }
    write_whole(temporary / MANIFEST, json.dumps({"facts": facts, "files": files}, indent=1))
    for path in [*temporary.rglob("*"), temporary]:
        _fsync(path)
    old = folder / f"{OLD}{final.name}"
    if final.exists():  # saved again, after a stop in the evaluation; at no moment is neither there
        final.rename(old)
    temporary.rename(final)
    _fsync(folder)
    shutil.rmtree(old, ignore_errors=True)
    write_whole(folder / LATEST, final.name + "\n")
    if best:
        write_whole(folder / "best", final.name + "\n")
    _drop_old(folder, keep)
    return final


def newest_whole(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files match its manifest; a damaged one is named through `warn` and passed over."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        problem = _problem(path)
        if problem is None:
            return path
        warn(f"checkpoint {path} is damaged ({problem}); looking for an older one")
    return None


def facts_of(path: Path) -> dict:
    return json.loads((path / MANIFEST).read_text())["facts"]


def refuse_other(saved: dict, current: dict, path: Path) -> None:
    """Raise InputError naming every difference between the saved facts and those of this run."""
    differences = [
        f"{key}: the checkpoint has {saved.get(key)!r}, this run {value!r}"
        for key, value in current.items()
        if saved.get(key) != value
    ]
    if differences:
        raise InputError(
            f"cannot resume from {path}: it was made by another run. "
            + "; ".join(differences)
            + ". Resume with the settings it was made with, or start in a new run folder"
        )


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _problem(path: Path) -> str | None:
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"no readable {MANIFEST}: {error}"
    for name, facts in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != facts["bytes"]:
            return f"{name} has {file.stat().st_size} bytes instead of {facts['bytes']}"
        if sha256_of(file) != facts["sha256"]:
            return f"{name} has another sha256 than when it was saved"
    return None


def _drop_old(folder: Path, keep: int) -> None:
    best = folder / "best"
    kept = {best.read_text().strip()} if best.exists() else set()
    for path in sorted(folder.glob("step-*"))[:-keep]:
        if path.name not in kept:
            shutil.rmtree(path)
