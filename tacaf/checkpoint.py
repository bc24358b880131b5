"""Checkpoints that are either complete or absent: temporary name, manifest with hashes, rename, then `latest`.

A checkpoint is a folder `checkpoints/step-00001234`. Whoever writes its files (DeepSpeed, on all ranks) writes them
under the temporary name; `commit` makes it real on rank 0. The manifest lists every file with its hash, carries a hash
of itself, and is signed with the user's own key (`trust.py`). Files that it does not list are never opened.
"""

import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, JsonValue, StringConstraints, ValidationError

from tacaf import trust
from tacaf.documents import NO_SEAL, Count, Document, Sha256, check_seal, parse, seal, what_is_wrong
from tacaf.files import read_bytes, reason_of, sha256_of, shown, write_whole
from tacaf.vocabulary import InputError

MANIFEST = "manifest.json"
LATEST_FILE = "latest"
BEST_FILE = "best"
OLD = ".old-"
MOST_MANIFEST_BYTES = 2**26  # thousands of ranks' files
_STEP = re.compile(r"step-(\d{8,18})")
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}"

# A path that cannot lead out of the checkpoint's folder.
InnerName = Annotated[str, StringConstraints(pattern=rf"^{_PART}(/{_PART}){{0,7}}$")]


class SavedFile(Document):
    """One file of a checkpoint."""

    bytes: Count
    sha256: Sha256


class Manifest(Document):
    """The content of manifest.json."""

    format: Literal["tacaf-checkpoint"] = "tacaf-checkpoint"
    format_version: Literal[1] = 1
    facts: dict[str, JsonValue] = Field(description="what a run must know before it opens a file")
    files: dict[InnerName, SavedFile] = Field(min_length=1, max_length=10**6, description="every file but this one")
    signature: Sha256 | None = Field(
        description="of facts and files, with the key of the user who wrote it; null if that user could not keep a key"
    )
    place: Sha256 = Field(description="identifies the folder that it was written in")
    seal: Sha256 = Field(NO_SEAL, description="sha256 of this file with 64 zeros in place of the seal")

    def to_json(self) -> str:
        return seal(self.model_copy(update={"seal": NO_SEAL}).model_dump_json(indent=1) + "\n")


def tag_of(global_step: int) -> str:
    return f"step-{global_step:08d}"


def temporary_tag(global_step: int) -> str:
    return f".tmp-{tag_of(global_step)}"


def steps_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the oldest first. Other names are ignored."""
    found = [(int(name[1]), path) for path in folder.glob("step-*") if (name := _STEP.fullmatch(path.name))]
    return [path for _, path in sorted(found) if path.is_dir()]


def clear_temporary(folder: Path) -> None:
    """Remove what a killed save left behind."""
    for path in folder.glob(".tmp-*"):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def mend(folder: Path) -> None:
    """Restore a checkpoint that was moved aside for its successor, if a kill came before the successor was in place."""
    for old in folder.glob(f"{OLD}*"):
        final = folder / old.name.removeprefix(OLD)
        if _STEP.fullmatch(final.name) and not old.is_symlink():
            shutil.rmtree(old) if final.exists() else old.rename(final)


def commit(folder: Path, global_step: int, facts: dict[str, Any], keep: int, best: bool = False) -> Path:
    """Make the temporary checkpoint of this step real (rank 0 only, after a barrier), and remove old ones.

    `facts` go into the manifest as plain JSON, so that a checkpoint can be checked before any other file is opened.
    Keeps the newest `keep` checkpoints and the one named in `best`.
    """
    temporary, final = folder / temporary_tag(global_step), folder / tag_of(global_step)
    files = {
        str(path.relative_to(temporary)): SavedFile(bytes=path.stat().st_size, sha256=sha256_of(path))
        for path in sorted(temporary.rglob("*"))
        if path.is_file()
    }
    unsigned = Manifest(facts=facts, files=files, signature=None, place=trust.place_of(folder))
    signed = unsigned.model_copy(update={"signature": trust.sign(_signed(unsigned))})
    write_whole(temporary / MANIFEST, signed.to_json())
    for path in [*temporary.rglob("*"), temporary]:
        _fsync(path)
    old = folder / f"{OLD}{final.name}"
    if final.exists():  # the step is saved again after a stop during evaluation; one of the two always exists
        final.rename(old)
    temporary.rename(final)
    _fsync(folder)
    shutil.rmtree(old, ignore_errors=True)
    write_whole(folder / LATEST_FILE, final.name + "\n")
    if best:
        write_whole(folder / BEST_FILE, final.name + "\n")
    _drop_old(folder, keep)
    return final


def newest_whole(folder: Path, warn: Callable[[str], None], facts: type[BaseModel] | None = None) -> Path | None:
    """The newest checkpoint whose files match its manifest, or None. `warn` gets a sentence for each damaged one.

    A checkpoint whose facts do not fit the model `facts` counts as damaged too.
    """
    for path in reversed(steps_in(folder)):
        problem = _problem(path, facts)
        if problem is None:
            return path
        warn(f"checkpoint {shown(path)} is damaged ({problem}); looking for an older one")
    return None


def manifest_of(path: Path) -> Manifest:
    """The manifest of a checkpoint. Raises InputError if it is not valid or was changed."""
    where = path / MANIFEST
    data = read_bytes(where, MOST_MANIFEST_BYTES)
    manifest = parse(data, Manifest, shown(where), MOST_MANIFEST_BYTES)
    check_seal(data, shown(where))
    return manifest


def facts_of(path: Path) -> dict[str, Any]:
    return manifest_of(path).facts


def refuse_other(saved: Mapping[str, Any], current: Mapping[str, Any], path: Path) -> None:
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
            + ". Resume with the settings that it was made with, or start in a new run folder"
        )


def refuse_strange(path: Path) -> None:
    """Raise InputError for a checkpoint that another user wrote or that was copied from elsewhere (see `trust.py`)."""
    manifest = manifest_of(path)
    whose = trust.stranger_of([path.parent, path, path / MANIFEST, *(path / name for name in manifest.files)])
    if whose is not None:
        why = f"belongs to another user ({whose})"
    elif trust.signed(_signed(manifest), manifest.signature) or manifest.place == trust.place_of(path.parent):
        return
    else:
        why = "was not written here by you"
    raise InputError(
        f"{shown(path)} {why}. Loading a checkpoint can run code from whoever made it; if you know who that is, add"
        " --trust"
    )


def _signed(manifest: Manifest) -> bytes:
    """The bytes that a signature covers."""
    return manifest.model_dump_json(include={"facts", "files"}).encode()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _problem(path: Path, facts: type[BaseModel] | None) -> str | None:
    try:
        manifest = manifest_of(path)
        if facts is not None:
            facts.model_validate(manifest.facts)
        return _difference(path, manifest)
    except ValidationError as error:
        return f"facts in {MANIFEST}: {what_is_wrong(error)}"
    except InputError as error:
        return f"no readable {MANIFEST}: {error}"
    except (OSError, ValueError) as error:
        return reason_of(error)


def _difference(path: Path, manifest: Manifest) -> str | None:
    """The first contradiction to the manifest: a file that is missing, changed, not a plain file, or not listed."""
    for name, facts in manifest.files.items():
        file = path / name
        if file.is_symlink() or not file.is_file():
            return f"{name} is missing" if not os.path.lexists(file) else f"{name} is not a plain file"
        if file.stat().st_size != facts.bytes:
            return f"{name} has {file.stat().st_size} bytes instead of {facts.bytes}"
        if sha256_of(file) != facts.sha256:
            return f"the sha256 of {name} has changed since it was saved"
    for file in path.rglob("*"):
        name = str(file.relative_to(path))
        if name not in manifest.files and name != MANIFEST and (file.is_symlink() or not file.is_dir()):
            return f"{shown(name)} is not one of its files"
    return None


def _drop_old(folder: Path, keep: int) -> None:
    """Remove all but the newest and the best; remove nothing if the file `best` does not name a checkpoint."""
    best = folder / BEST_FILE
    kept = ""
    if os.path.lexists(best):
        try:
            kept = read_bytes(best, 100).decode().strip()
        except (InputError, UnicodeDecodeError):
            return
        if not _STEP.fullmatch(kept):
            return
    for path in steps_in(folder)[:-keep]:
        if path.name != kept:
            shutil.rmtree(path)
