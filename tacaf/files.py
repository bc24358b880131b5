"""Files that are whole or not there: writing, reading within a limit, hashing, locking, and names fit for people.

What is written appears under its name in one step, on the disk, with the permissions that the file had before or that
the umask gives a new one. Until then it has a temporary name beside it, which is held by a lock of the writing process;
so whoever writes next removes what a killed process left behind, and nothing that is still in use.
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

# What the file system says of a write, where the error itself may not name the file.
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # of a file system without locks: go without
_PARTIAL = ".partial"
_MOST_TRIES = 10_000  # to lock or make what others remove at the same moment
_LONGEST_NAME = 255  # bytes, on every usual file system of Linux
_OF_RUST = re.compile(r"\(os error (\d+)\)")  # how its libraries (safetensors) pass on the system's error


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part. InputError if it cannot be written.

    Text is written as UTF-8; a file name in it that is not UTF-8 keeps its bytes.
    """
    with whole_file(path) as file:
        file.write(content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape"))


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole, and the folders above it where they are missing. Infinities are an error."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    _make_folders_for(path)
    write_whole(path, text)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends well; otherwise `path` is as before.

    InputError, naming the path, if the file cannot be written: no space, no permission, a folder in its place.
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
    """As `whole_file`, for a library that opens the file itself: the path of a new file that becomes `path`."""
    target = _target(path)
    with _explained(path, target), _new_folder(target) as folder:
        made = folder / target.name
        made.touch()
        mode = _mode_of(target)
        mode = stat.S_IMODE(made.stat().st_mode) if mode is None else mode
        yield made
        made.chmod(mode)  # the library may have made a file of its own under this name
        _sync_file(made)
        os.replace(made, target)
        sync_folder(target.parent)


@contextmanager
def whole_folder(path: Path, sync: bool = True) -> Iterator[Path]:
    """A new folder that becomes `path`, which must not exist or be empty, when the block ends well.

    Without `sync`, for thousands of files that can be made again, the system writes them to the disk when it likes.
    """
    with _explained(path, path), _new_folder(path) as folder:
        yield folder
        for made in folder.rglob("*") if sync else ():
            if made.is_file():
                _sync_file(made)
        os.rename(folder, path)
        sync_folder(path.parent)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of `path` that a killed process left behind; those in use are locked and stay."""
    prefix = _prefix(path)
    try:
        names = [name for name in os.listdir(path.parent) if name.startswith(prefix) and name.endswith(_PARTIAL)]
    except OSError:
        return
    for name in names:
        if len(name) == len(prefix) + 16 + len(_PARTIAL):
            _remove_unless_locked(path.parent / name)


def read_bytes(path: Path, most: int) -> bytes:
    """The bytes of a plain file of at most `most` bytes. InputError for anything else, before it is read."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a writer does not keep us waiting
        with os.fdopen(handle, "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise InputError(f"{shown(path)} is not a file")
            if facts.st_size > most:
                raise InputError(f"{shown(path)} has {facts.st_size:,} bytes; at most {most:,} are read")
            data = file.read(most + 1)
            if len(data) > most:  # it grows, or its size is not what the system says
                raise InputError(f"{shown(path)} has more than {most:,} bytes, which are all that is read")
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
    """Hold the lock file `path` alone among processes and threads; the system releases it when the process ends.

    The file is gone afterwards. A process that is killed leaves it, which disturbs nobody.

    InputError if it cannot be made or, without `wait`, if another process holds it: `busy` is what it then says.
    """
    _make_folders_for(path)
    handle = _open_locked(path, wait, busy)
    try:
        yield
    finally:
        with suppress(OSError):  # whoever waits for it sees that it is gone, and makes another one
            path.unlink()
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where the folder may be read and its file system can do so."""
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
    """The first line of an error's text, which libraries continue over pages; its type if it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shown(name: object) -> str:
    """A name for a message or a page: control characters, direction marks and bytes outside UTF-8 are escaped."""
    text = os.fsdecode(name) if isinstance(name, bytes | os.PathLike) else str(name)
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def as_text(name: str) -> str:
    """A file name for a document: a byte that is not UTF-8 becomes `\\xNN`, and a backslash two; it can be undone."""
    return name.replace("\\", "\\\\").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def path_of(text: str) -> Path:
    """A path that a user typed, with `~` expanded. InputError for an empty one, and for what no file can be called."""
    try:
        if not text or b"\0" in os.fsencode(text):
            raise InputError(f"expected a path, got {text!r}")
        return Path(text).expanduser()
    except UnicodeEncodeError:
        raise InputError(f"expected a path, got {text!r}") from None
    except RuntimeError:
        raise InputError(f"{shown(text)}: there is no such user, so `~` cannot be expanded") from None


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
    """Where the file is: behind a link, so that the link stays. InputError for a folder or a device."""
    try:
        target = Path(os.path.realpath(path)) if path.is_symlink() else path
        if target.is_symlink():  # only where links lead in a circle
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
    """InputError for the file system's refusal of what is written below; any other error passes unchanged."""
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
    """Whether the system refused our file and not another one that the block opened."""
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
    """How the temporary names of a file begin. The name of a file may leave no room for more: its beginning then."""
    room = _LONGEST_NAME - 2 - 16 - len(_PARTIAL)
    return f".{os.fsdecode(os.fsencode(target.name)[:room])}."


def _temporary(target: Path) -> Path:
    return target.parent / f"{_prefix(target)}{secrets.token_hex(8)}{_PARTIAL}"


def _new_file(target: Path) -> tuple[Path, int]:
    """A new, locked file beside `target`, with the mode that `target` has or would get."""
    mode = _mode_of(target)
    while True:
        temporary, handle = _temporary(target), -1
        try:  # a signal that comes while the file is made is answered just after it
            handle = os.open(
                temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666 if mode is None else mode | 0o600
            )
            _lock(handle)
            if _is(handle, temporary):  # else taken for a leftover between its making and its locking
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
    """A new, locked folder beside `target`; it is gone after the block unless it was renamed."""
    remove_leftovers(target)
    for last in (*[False] * _MOST_TRIES, True):
        folder, handle = _temporary(target), -1
        try:
            folder.mkdir()
            handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            _lock(handle)
            if _is(handle, folder):  # else as above
                yield folder
                return
        except FileNotFoundError:
            # Else it was taken for a leftover before it was opened; or, in /proc, no folder can be made at all.
            if handle >= 0 or last or not folder.parent.is_dir():
                raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if handle >= 0:
                os.close(handle)


def _open_locked(path: Path, wait: bool, busy: str) -> int:
    """A handle of the lock file, which nobody else has locked and which still has its name."""
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
    raise InputError(f"cannot lock {shown(path)}: it does not stay where it is")


def _lock(handle: int) -> None:
    """Lock a new file. Whoever takes it for a leftover holds it for a moment, and then it is gone: wait for that."""
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
