"""The output folder of a packing: written under a temporary name, synchronised to disk, renamed when it is whole."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from shards.index_file import read_index
from tacaf.vocabulary import COLUMN_FOLDER, INDEX_FILE, InputError


@contextmanager
def new_set(out: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` when the block ends well, and vanishes when it does not.

    With `overwrite` an older shard set stays in place until then. InputError if something else is in the way.
    """
    _check_target(out, overwrite)
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / COLUMN_FOLDER).mkdir(parents=True)
        yield partial
        _commit(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write and synchronise a small file."""
    with path.open("wb") as file:
        file.write(text.encode())
        sync(file)


def sync(file: BinaryIO) -> None:
    """Have an open file's content on the disk, not only in memory."""
    file.flush()
    os.fsync(file.fileno())


def file_sha256(path: Path) -> str:
    """The sha256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_target(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"expected a folder for the shards, got the file {out}; choose another --out")
    names = sorted(path.name for path in out.iterdir())
    if not names:
        return
    if not overwrite:
        raise InputError(
            f"expected a new or empty folder, got {out} with files in it; choose another or add --overwrite"
        )
    # Replacing deletes, so only what is known to be a shard set, and nothing else, may be replaced.
    try:
        shards = [shard.name for shard in read_index(out).shards]
    except InputError as error:
        raise InputError(
            f"expected a shard set to overwrite in {out}, but: {error}. Move the folder away yourself"
        ) from None
    own = {COLUMN_FOLDER, INDEX_FILE, *shards, *(Path(name).with_suffix(".idx").name for name in shards)}
    for name in names:
        if name not in own:
            raise InputError(
                f"expected only a shard set in {out}, found {name} too; move it away or choose another --out"
            )


def _commit(partial: Path, out: Path) -> None:
    _sync_folder(partial / COLUMN_FOLDER)
    _sync_folder(partial)
    if out.exists() and any(out.iterdir()):
        old = out.with_name(f"{out.name}.old-{os.getpid()}")
        os.rename(out, old)
        try:
            os.rename(partial, out)
        except OSError:
            os.rename(old, out)
            raise
        shutil.rmtree(old)
    else:
        os.rename(partial, out)
    _sync_folder(out.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
