"""File operations: atomic writing, reading within a limit, hashing, locking, and names made safe to show.

A written file appears under its name in one step, on the disk, with the permissions that the file had before or that
the umask gives a new one. Until then it has a temporary name in the same folder and is locked by the writing process.
The next writer removes temporary files that a killed process left behind, but none that is still in use.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from tacaf.vocabulary import InputError

# Errors of a write, which may not name the file.
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # of a file system without locks; we do without them there
_PARTIAL = ".partial"
_MOST_TRIES = 10_000  # to lock or create a file that other processes remove at the same moment
_LONGEST_NAME = 255  # bytes, on every usual file system of Linux
_OF_RUST = re.compile(r"\(os error (\d+)\)")  # how Rust libraries (safetensors) write the system's error


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees either the old content or the new, never a part of it.

    Text is written as UTF-8; a file name in it that is not UTF-8 keeps its bytes. Raises InputError if the file cannot
    be written.
    """
    with whole_file(path) as file:
        file.write(content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape"))


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON with `write_whole`, and create missing folders above it. Infinities are an error."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    _make_folders_for(path)
    write_whole(path, text)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` if the block ends without an exception; otherwise `path` is unchanged.

    Raises InputError, naming the path, if the file cannot be written: no space, no permission, a folder in its place.
    """
    target = _target(path)
    with _explained(path, target):
        remove_leftovers(target)
        temporary, handle = _new_file(target)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(target.parent)


@contextmanager
def whole_path(path: Path) -> Iterator[Path]:
    """Like `whole_file`, for a library that opens the file itself: the path of a new file that becomes `path`."""
    target = _target(path)
    with _explained(path, target), _new_folder(target) as folder:
        made = folder / target.name
        made.touch()
        mode = _mode_of(target)
        mode = stat.S_IMODE(made.stat().st_mode) if mode is None else mode
        yield made
        made.chmod(mode)  # the library may have created another file under this name
        _sync_file(made)
        os.replace(made, target)
        sync_folder(target.parent)


@contextmanager
def whole_folder(path: Path, sync: bool = True) -> Iterator[Path]:
    """A new folder that becomes `path`, which must be missing or empty, if the block ends without an exception.

    Without `sync`, the system writes the files to the disk later; use it for thousands of files that can be recreated.
    """
    with _explained(path, path), _new_folder(path) as folder:
        yield folder
        for made in folder.rglob("*") if sync else ():
            if made.is_file():
                _sync_file(made)
        os.rename(folder, path)
        sync_folder(path.parent)


def remove_leftovers(path: Path) -> None:
    """Remove temporary files of `path` that a killed process left behind; those in use are locked and kept."""
    prefix = _prefix(path)
    try:
        names = [name for name in os.listdir(path.parent) if name.startswith(prefix) and name.endswith(_PARTIAL)]
    except OSError:
        return
    for name in names:
        if len(name) == len(prefix) + 16 + len(_PARTIAL):
            _remove_unless_locked(path.parent / name)


def read_bytes(path: Path, most: int) -> bytes:
    """The bytes of a plain file of at most `most` bytes. Raises InputError for anything else, before reading it."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # does not block on a pipe without a writer
        with os.fdopen(handle, "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise InputError(f"{shown(path)} is not a file")
            if facts.st_size > most:
                raise InputError(f"{shown(path)} has {facts.st_size:,} bytes; at most {most:,} are read")
            data = file.read(most + 1)
            if len(data) > most:  # it is growing, or the system reports a wrong size
                raise InputError(f"{shown(path)} has more than {most:,} bytes; at most {most:,} are read")
            return data
    except FileNotFoundError:
        raise InputError(f"{shown(path)} does not exist") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {shown(path)}: {reason_of(error)}") from None


def sha256_of(path: Path) -> str:
    """The sha256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path, wait: bool = True, busy: str = "") -> Iterator[None]:
    """Hold the lock file `path` exclusively among processes and threads. The system releases it if the process dies.

    The file is removed afterwards. A killed process leaves it behind, which does no harm.

    Raises InputError if it cannot be created or, without `wait`, if another process holds it; `busy` is the text then.
    """
    _make_folders_for(path)
    handle = _open_locked(path, wait, busy)
    try:
        yield
    finally:
        with suppress(OSError):  # a process that waits for it notices the removal and creates another one
            path.unlink()
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, if the folder can be read and its file system supports that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)


def reason_of(error: Exception) -> str:
    """An operating system's error as the end of a sentence: "no space left on device"."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    first = text.partition(" ")[0]
    return text[:1].lower() + text[1:] if first[1:].islower() or len(first) == 1 else text


def first_line(error: Exception) -> str:
    """The first line of an error's text, since some libraries write pages; its type if it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shown(name: object) -> str:
    """A name for a message or a page: control characters, direction marks and bytes outside UTF-8 are escaped."""
    text = os.fsdecode(name) if isinstance(name, bytes | os.PathLike) else str(name)
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def as_text(name: str) -> str:
    """A file name as UTF-8 text, reversibly: other bytes become `\\xNN`, and every backslash is doubled."""
    return name.replace("\\", "\\\\").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def path_of(text: str) -> Path:
    """A path that a user typed, with `~` expanded. Raises InputError if it is empty or cannot be a file name."""
    try:
        if not text or b"\0" in os.fsencode(text):
            raise InputError(f"expected a path, got {text!r}")
        return Path(text).expanduser()
    except UnicodeEncodeError:
        raise InputError(f"expected a path, got {text!r}") from None
    except RuntimeError:
        raise InputError(f"{shown(text)}: cannot expand `~`, because there is no such user") from None


def _escaped(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as Python keeps it in a file name
        return f"\\x{code - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode()


def _make_folders_for(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"cannot write {shown(path)}: {shown(path.parent)} is not a folder") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {shown(path)}: {reason_of(error)}") from None


def _target(path: Path) -> Path:
    """The file itself: the target of a link, so that the link is kept. Raises InputError for a folder or a device."""
    try:
        target = Path(os.path.realpath(path)) if path.is_symlink() else path
        if target.is_symlink():  # links form a circle
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        mode = target.stat().st_mode if target.exists() else stat.S_IFREG
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {shown(path)}: {reason_of(error)}") from None
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "not a plain file"
        raise InputError(f"cannot write {shown(path)}: it is {what}")
    return target


@contextmanager
def _explained(path: Path, target: Path) -> Iterator[None]:
    """Turn errors of writing `target` inside the block into InputError; any other error passes unchanged."""
    try:
        yield
    except OSError as error:
        if not _is_about_the_write(error, target):
            raise
        raise InputError(f"cannot write {shown(path)}: {reason_of(error)}") from error
    except ValueError as error:
        if "null byte" not in str(error):
            raise
        raise InputError(f"cannot write {shown(path)}: {reason_of(error)}") from None
    except Exception as error:
        number = _OF_RUST.search(str(error))
        if number is None or int(number[1]) not in _WRITE_ERRORS:
            raise
        reason = reason_of(OSError(int(number[1]), os.strerror(int(number[1]))))
        raise InputError(f"cannot write {shown(path)}: {reason}") from error


def _is_about_the_write(error: OSError, target: Path) -> bool:
    """Whether the error is about our file and not about another one that the block opened."""
    if error.filename is None or isinstance(error.filename, int):  # a write to an open file (disk full) has no name
        return error.errno in _WRITE_ERRORS
    prefix = _prefix(target)
    return any(part.startswith(prefix) and part.endswith(_PARTIAL) for part in Path(os.fsdecode(error.filename)).parts)


def _mode_of(target: Path) -> int | None:
    try:
        return stat.S_IMODE(target.stat().st_mode)
    except OSError:
        return None


def _prefix(target: Path) -> str:
    """How the temporary names of a file begin: its name, cut if it is so long that nothing could be added."""
    room = _LONGEST_NAME - 2 - 16 - len(_PARTIAL)
    return f".{os.fsdecode(os.fsencode(target.name)[:room])}."


def _temporary(target: Path) -> Path:
    return target.parent / f"{_prefix(target)}{secrets.token_hex(8)}{_PARTIAL}"


def _new_file(target: Path) -> tuple[Path, int]:
    """A new, locked file beside `target`, with the mode that `target` has or would get."""
    mode = _mode_of(target)
    while True:
        temporary, handle = _temporary(target), -1
        try:  # a signal that arrives during os.open is handled right after it
            handle = os.open(
                temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666 if mode is None else mode | 0o600
            )
            _lock(handle)
            if _is(handle, temporary):  # otherwise it was removed as a leftover before it was locked
                if mode is not None:
                    os.fchmod(handle, mode)
                return temporary, handle
            os.close(handle)
        except BaseException:
            if handle >= 0:
                os.close(handle)
            with suppress(OSError):
                temporary.unlink()
            raise


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A new, locked folder beside `target`; it is removed after the block unless it was renamed."""
    remove_leftovers(target)
    for tries_left in reversed(range(_MOST_TRIES)):
        folder, handle = _temporary(target), -1
        try:
            folder.mkdir()
            handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            _lock(handle)
            if _is(handle, folder):  # otherwise it was removed as a leftover
                yield folder
                return
        except FileNotFoundError:
            # Another process may have removed it as a leftover before it was opened. In /proc, mkdir always fails so.
            if handle >= 0 or tries_left == 0 or not folder.parent.is_dir():
                raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if handle >= 0:
                os.close(handle)


def _open_locked(path: Path, wait: bool, busy: str) -> int:
    """A handle of the lock file, locked, and still the file of that name."""
    for _ in range(_MOST_TRIES):
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot write {shown(path)}: {reason_of(error)}") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is(handle, Path(os.path.realpath(path))):
                return handle
            os.close(handle)
        except BaseException as error:
            if isinstance(error, OSError) and error.errno in NO_LOCKS:
                return handle
            os.close(handle)
            if isinstance(error, BlockingIOError):
                raise InputError(busy or f"{shown(path)} is locked by another process; wait until it is done") from None
            if isinstance(error, OSError):
                raise InputError(f"cannot lock {shown(path)}: {reason_of(error)}") from None
            raise
    raise InputError(f"cannot lock {shown(path)}: other processes keep removing it")


def _lock(handle: int) -> None:
    """Lock a new file. A process that takes it for a leftover locks and removes it: then this waits for the removal."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def _is(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def _remove_unless_locked(path: Path) -> None:
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        finally:
            os.close(handle)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
