"""The output folder of a packing: assembled in a working folder beside it, and moved into place once it is complete.

The working folder `<out>.packing` exists while a packing runs and after one that was interrupted. It contains:
    lock      held by the one process that may write here; the system releases it however that process ends
    shards/   finished shards, from which the next packing resumes
    set/      the new set; exchanged with `out` at the end
    old/      the old set, for a moment, on a file system that cannot exchange two folders
"""

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tacaf.files import NO_LOCKS, sync_folder
from tacaf.shard_set import read_index
from tacaf.vocabulary import COLUMN_FOLDER, INDEX_FILE, InputError

_NO_EXCHANGE = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux' renameat2


@dataclass(frozen=True)
class Workplace:
    """The folders of a packing."""

    out: Path

    @property
    def folder(self) -> Path:
        return self.out.with_name(self.out.name + ".packing")

    @property
    def lock(self) -> Path:
        return self.folder / "lock"

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    @property
    def set(self) -> Path:
        return self.folder / "set"

    @property
    def old(self) -> Path:
        return self.folder / "old"


@contextmanager
def new_set(out: Path, overwrite: bool) -> Iterator[Workplace]:
    """Yields a workplace whose `set` becomes `out` when the block ends without an error.

    After an error `out` is unchanged and only the finished shards remain; a note on the error says where they are.
    With `overwrite` an older shard set stays in place until the end, and a kill leaves either the old or the new one.
    Raises InputError if `out` is not a folder that may be replaced, or if another process is packing to it.
    """
    place = Workplace(out)
    with _locked(place):
        _check_own(place)
        _clear(place)
        _check_target(out, overwrite)
        try:
            (place.set / COLUMN_FOLDER).mkdir(parents=True)
            place.shards.mkdir(exist_ok=True)
            yield place
            _commit(place)
        except BaseException as error:
            _clear(place)
            waiting = _keep_finished(place)
            if waiting:
                error.add_note(
                    f"{waiting} finished shard{'s are' if waiting > 1 else ' is'} kept in {place.shards}: "
                    "the same command resumes from there"
                )
            raise
        shutil.rmtree(place.shards)
        if place.set.exists():  # exchanged: this is the old set
            shutil.rmtree(place.set)


def link(source: Path, target: Path) -> bool:
    """Make a hard link to a file. Returns False on a file system that has no hard links."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            return False
        raise
    return True


def write_text(path: Path, content: str | bytes) -> None:
    """Write a small file of a set that is not yet in its place, and flush it to the disk."""
    with path.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        sync(file)


def sync(file: BinaryIO) -> None:
    """Flush an open file to the disk, so that a power failure cannot lose it."""
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _locked(place: Workplace) -> Iterator[None]:
    handle = _take_lock(place)
    try:
        yield
    finally:
        place.lock.unlink(missing_ok=True)  # while it is held, so that whoever opened it meanwhile sees it is gone
        with suppress(OSError):  # not empty: it contains finished shards
            place.folder.rmdir()
        os.close(handle)


def _take_lock(place: Workplace) -> int:
    """The open lock file. Raises InputError if another process holds it."""
    while True:
        place.folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(place.lock, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # its owner has just removed the folder
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, BlockingIOError):
                owner = os.read(handle, 32).decode(errors="replace") or "unknown"
                os.close(handle)
                raise InputError(
                    f"{place.out} is in use by process {owner}; wait until it has finished, or choose another --out"
                ) from None
            if error.errno not in NO_LOCKS:
                os.close(handle)
                raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(place.lock)):
                os.truncate(handle, 0)
                os.write(handle, str(os.getpid()).encode())
                return handle
        os.close(handle)  # its owner removed the file after this process opened it and before it took the lock


def _check_own(place: Workplace) -> None:
    """Raises InputError if the working folder contains anything else than a packing writes, because it gets deleted."""
    known = {path.name for path in (place.lock, place.shards, place.set, place.old)}
    strange = sorted(path.name for path in place.folder.iterdir() if path.name not in known)
    if strange:
        raise InputError(f"expected only the files of a packing in {place.folder}, found {strange[0]}; move it away")


def _clear(place: Workplace) -> None:
    """Remove an unfinished set; bring back an old one that was set aside when the process was killed."""
    if place.old.exists():
        if not place.out.exists():
            os.rename(place.old, place.out)
        else:
            shutil.rmtree(place.old)
    if place.set.exists():
        shutil.rmtree(place.set)


def _keep_finished(place: Workplace) -> int:
    """Remove what belongs to no finished shard, and the folder if none is left. Returns the number of shards kept."""
    tars = {path.stem for path in place.shards.glob("*.tar")}
    records = {path.stem for path in place.shards.glob("*.json")} & tars
    if not records:
        shutil.rmtree(place.shards, ignore_errors=True)
        return 0
    for path in place.shards.iterdir():
        if path.stem not in records:
            path.unlink()
    return len(records)


def _check_target(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"expected a folder for the shards, got the file {out}; choose another --out")
    if os.path.ismount(out):
        raise InputError(f"{out} is a mount point, which cannot be replaced; choose a folder inside it")
    names = sorted(path.name for path in out.iterdir())
    if not names:
        return
    if not overwrite:
        raise InputError(
            f"expected a new or empty folder, got {out} with files in it; choose another or add --overwrite"
        )
    # Replacing deletes the old content, so only a shard set may be replaced, and only if nothing else is beside it.
    try:
        shards = [shard.name for shard in read_index(out).shards]
    except InputError as error:
        raise InputError(
            f"--overwrite replaces only a shard set, and {out} is not one: {error}. Move the folder away yourself"
        ) from None
    known = {COLUMN_FOLDER, INDEX_FILE, *shards, *(Path(name).with_suffix(".idx").name for name in shards)}
    for name in names:
        if name not in known:
            raise InputError(
                f"expected only a shard set in {out}, found {name} too; move it away or choose another --out"
            )


def _commit(place: Workplace) -> None:
    sync_folder(place.set / COLUMN_FOLDER)
    sync_folder(place.set)
    if not place.out.exists() or not any(place.out.iterdir()):
        os.rename(place.set, place.out)
    elif not _exchange(place.set, place.out):
        os.rename(place.out, place.old)
        os.rename(place.set, place.out)
        shutil.rmtree(place.old)
    sync_folder(place.out.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step. Returns False if the system or the file system cannot do that."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    names = os.fsencode(first), os.fsencode(second)
    if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(second))
