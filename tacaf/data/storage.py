"""Storage of a shard set's files: a local folder, or a server with a cache on this node.

A remote file is fetched once per node. It is downloaded completely, its hash is checked, and only then is it renamed,
so concurrent processes and killed downloads leave either the right file or none. fsspec's own caches check no hash and
have no size limit.
"""

import fcntl
import hashlib
import mmap
import os
import re
import time
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from pydantic import Field

from tacaf.files import locked, path_of, read_bytes, reason_of, shown
from tacaf.settings import Settings
from tacaf.shard_set import MISSING, file_problem
from tacaf.vocabulary import InputError

GIB = 2**30
CHUNK = 2**20
MOST_ERROR = 500  # characters of another library's error
FIRST_WAIT_S = 1.0  # before the second request; doubled before each further one
_HASH = re.compile("[0-9a-f]{64}")


class RemoteConfig(Settings):
    """How a shard set on a server is read (data.shards: http://, https://, s3:// ...). None of it changes a batch."""

    cache: Path = Field(
        Path("~/.cache/tacaf"),
        description="Folder on this node for fetched files, shared by all processes of the node.",
    )
    limit_gib: float = Field(
        100.0,
        gt=0,
        le=2**20,
        description="Size limit of the cache in GiB; the least recently used files are removed first.",
    )
    timeout_s: float = Field(
        60.0,
        gt=0,
        le=86_400,
        description="Seconds without an answer from the server after which a request is repeated.",
    )
    attempts: int = Field(4, ge=1, le=16, description="Requests for a file before the run stops.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="Options for fsspec's file system, such as endpoint_url or anon for s3."
    )


class File(NamedTuple):
    """A file of a set: its name in the index, its largest size in bytes, and its hash, which is its name in a cache."""

    name: str
    size: int
    sha256: str


class CacheFullError(InputError):
    """Files that are open or being fetched leave no room in the cache."""


class Store(Protocol):
    """The files of one set."""

    def read(self, name: str, most: int) -> bytes:
        """The content of a file. Raises FileNotFoundError if it is missing, InputError for more than `most` bytes."""

    def open(self, file: File) -> BufferedReader:
        """The opened file, which can be mapped. It stays on this node until it is closed."""

    def keep(self, file: BufferedReader) -> None:
        """Take over an opened file and keep it on this node as long as this store exists in this process."""

    def where(self, name: str) -> str:
        """The folder or address with the name, for messages."""


def open_store(location: str | Path, config: RemoteConfig | None = None) -> Store:
    """The store of a folder or an address."""
    location = str(location)
    if "://" not in location or location.startswith("file://"):
        return LocalStore(path_of(location.removeprefix("file://")))
    return CachedStore(location, config or RemoteConfig())


class LocalStore:
    """A folder of plain files; links are refused. Shards are not hashed here: python -m shards verify does that."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str, most: int) -> bytes:
        problem = file_problem(self.folder / name)
        if problem == MISSING:
            raise FileNotFoundError(name)
        if problem:
            raise InputError(f"{self.where(name)} {problem}")
        return read_bytes(self.folder / name, most)

    def open(self, file: File) -> BufferedReader:
        path = self.folder / file.name
        if path.parent != self.folder and path.parent.is_symlink():
            raise InputError(
                f"{shown(path.parent)} is a link, which may lead out of the set; put the folder itself in its place"
            )
        problem = file_problem(path)
        if problem:
            raise InputError(f"{self.where(file.name)} {problem}")
        return path.open("rb")

    def keep(self, file: BufferedReader) -> None:
        file.close()

    def where(self, name: str) -> str:
        return shown(self.folder / name)


class CachedStore:
    """A set at an address, read through the cache. It can be pickled, without its connections."""

    def __init__(self, address: str, config: RemoteConfig) -> None:
        self.address, self.config = address.rstrip("/"), config
        self.cache = config.cache.expanduser()
        self._files: AbstractFileSystem | None = None
        self._kept: list[mmap.mmap] = []
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot write the cache {shown(self.cache)}: {reason_of(error)}; set data.remote.cache"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": None, "_kept": []}

    def keep(self, file: BufferedReader) -> None:
        with file:
            self._kept.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))  # keeps the file and its lock

    def where(self, name: str) -> str:
        return shown(f"{self.address}/{name}")

    def read(self, name: str, most: int) -> bytes:
        return self._asking(name, lambda files, path: self._all_of(files, path, name, most))

    def open(self, file: File) -> BufferedReader:
        """The cached file under a shared lock, so that no process removes it while it is read."""
        while True:
            path = self._fetched(file)
            try:
                opened = path.open("rb")
            except FileNotFoundError:  # removed between the two lines to make room for another
                continue
            fcntl.flock(opened, fcntl.LOCK_SH)
            if os.fstat(opened.fileno()).st_nlink:
                os.utime(opened.fileno())  # marks it as the most recently used
                return opened
            opened.close()

    def _fetched(self, file: File) -> Path:
        """The path in the cache; fetches the file if needed. One process of the node fetches while the others wait."""
        if not _HASH.fullmatch(file.sha256):  # it becomes a file name
            raise InputError(f"{self.where(file.name)}: expected a sha256, got {shown(file.sha256)[:80]!r}")
        path = self.cache / f"{file.sha256}.whole"
        if path.exists():
            return path
        with locked(self.cache / f"{file.sha256}.lock"):
            if not path.exists():
                part = self.cache / f"{file.sha256}.part"
                try:
                    self._reserve(part, file)
                    self._asking(file.name, lambda files, remote: self._download(files, remote, file, part))
                    part.rename(path)
                except FileNotFoundError:
                    raise InputError(
                        f"{self.where(file.name)}, which the index names, does not exist; copy the set again"
                    ) from None
                finally:
                    part.unlink(missing_ok=True)
        return path

    def _reserve(self, part: Path, file: File) -> None:
        """Make room in the cache, and reserve it by giving the empty file its full size."""
        with locked(self.cache / "room.lock"):
            part.unlink(missing_ok=True)
            self._make_room(file.size)
            try:
                with part.open("wb") as reserved:
                    os.posix_fallocate(reserved.fileno(), 0, file.size)
            except OSError as error:
                part.unlink(missing_ok=True)
                raise InputError(
                    f"cannot reserve {file.size} bytes for {self.where(file.name)} in {shown(self.cache)}:"
                    f" {reason_of(error)}; free some space, or set data.remote.cache"
                ) from None

    def _make_room(self, size: int) -> None:
        """Remove leftovers of killed downloads, then the least recently used files until `size` more bytes fit."""
        limit = int(self.config.limit_gib * GIB)
        held = {}
        for path in [*self.cache.glob("*.whole"), *self.cache.glob("*.part")]:
            with suppress(FileNotFoundError):  # another process has just renamed or removed it
                held[path] = path.stat()
        used = sum(facts.st_size for facts in held.values())
        for path in sorted(held, key=lambda path: (path.suffix == ".whole", held[path].st_mtime_ns)):
            if path.suffix == ".part":
                gone = _remove(path, unless_held=path.with_suffix(".lock"))
            else:
                gone = used + size > limit and _remove(path, unless_held=path)
            used -= held[path].st_size if gone else 0
        if used + size > limit:
            raise CacheFullError(
                f"the cache {shown(self.cache)} has no room for {size} bytes: {used} bytes are in use, and its limit is"
                f" {self.config.limit_gib:g} GiB; raise data.remote.limit_gib, or lower data.plan.window_shards: two"
                " windows for every lane of the node must fit into the cache"
            )

    def _all_of(self, files: AbstractFileSystem, remote: str, name: str, most: int) -> bytes:
        """The content of a remote file. Reads at most `most` bytes, whatever size the server reports."""
        parts, size = [], 0
        with self._streamed(files, remote) as source:
            while chunk := source.read(CHUNK):
                size += len(chunk)
                if size > most:
                    raise InputError(f"{self.where(name)} has more than {most:,} bytes; at most {most:,} are read")
                parts.append(chunk)
        return b"".join(parts)

    def _streamed(self, files: AbstractFileSystem, remote: str) -> Any:
        once = {"block_size": 0} if self.address.startswith("http") else {}  # not every server supports ranges
        return files.open(remote, "rb", **once)

    def _download(self, files: AbstractFileSystem, remote: str, file: File, part: Path) -> None:
        """Download into the reserved file and check the hash."""
        digest, size = hashlib.sha256(), 0
        with self._streamed(files, remote) as source, part.open("r+b") as target:
            while chunk := source.read(CHUNK):
                size += len(chunk)
                if size > file.size:
                    raise OSError(f"more than the expected {file.size} bytes")
                digest.update(chunk)
                target.write(chunk)
            target.truncate()
            os.fsync(target.fileno())
        if digest.hexdigest() != file.sha256:
            raise OSError(f"{size} bytes whose sha256 is not the one in the index")

    def _asking(self, name: str, ask: Any) -> Any:
        """The result of `ask`, retried after any error, because every library behind fsspec has its own errors."""
        for attempt in range(self.config.attempts):
            if attempt:
                time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
            try:
                return ask(self._connected(), f"{self._root}/{name}")
            except InputError:
                raise
            except Exception as error:
                if isinstance(error, FileNotFoundError) and not _no_answer(error.__cause__):
                    raise
                problem = shown(f"{type(error).__name__} {error}".strip())[:MOST_ERROR]
        raise InputError(
            f"cannot read {self.where(name)} after {self.config.attempts} attempts: {problem}; check the server, the"
            " address data.shards, and data.remote"
        )

    def _connected(self) -> AbstractFileSystem:
        if self._files is None:
            try:
                files, self._root = url_to_fs(self.address, **_options(self.address, self.config))
            except (ImportError, ValueError) as error:
                raise InputError(
                    f"data.shards: expected an address that an installed package reads, got {self.address} ({error})"
                ) from None
            self._files = files  # assigned last, because other threads use both as soon as they see it
        return self._files


def _no_answer(cause: BaseException | None) -> bool:
    """Whether "not found" means that the server did not respond; fsspec raises the same error over HTTP for both."""
    if cause is None or isinstance(cause, FileNotFoundError):
        return False
    from aiohttp import ClientConnectionError

    return isinstance(cause, (OSError, ClientConnectionError)) or getattr(cause, "status", 404) >= 500


def _options(address: str, config: RemoteConfig) -> dict[str, Any]:
    """The options of the address's file system: the timeout under its name there, and the user's options."""
    kind, timeout = address.split("://")[0], config.timeout_s
    if kind in ("http", "https"):
        from aiohttp import ClientTimeout  # fsspec needs it only for these addresses

        silent = ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)
        return {"client_kwargs": {"timeout": silent}, "skip_instance_cache": True, **config.options}
    if kind == "s3":
        return {"config_kwargs": {"connect_timeout": timeout, "read_timeout": timeout}, **config.options}
    return dict(config.options)


def _remove(path: Path, unless_held: Path) -> bool:
    """Remove the file unless another process holds a lock on `unless_held`. Returns whether the file is gone."""
    try:
        with unless_held.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)  # while locked, so that a process that opens it meanwhile notices
    except FileNotFoundError:
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    return True
