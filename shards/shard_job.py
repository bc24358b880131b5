"""Writes one shard, in any process: its tar, DALI's index, and the record that marks it as finished.

A shard's files are named by its fingerprint, a hash of everything its bytes depend on. So a packing that resumes
recognises by their names which finished shards it can use.
"""

import base64
import hashlib
import json
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from shards.output import sync, write_text
from shards.sources.record import Record
from shards.tar import BLOCK, Component, add_member, index_text, padded
from shards.workers import Progress
from tacaf.documents import Document, read_document
from tacaf.files import as_text, sha256_of, shown, write_whole
from tacaf.images import MOST_BYTES, ImageError, Looked, look
from tacaf.vocabulary import InputError

RECIPE = 2  # changes whenever the same images give a different shard or record
_UNREAD = "cannot be read"  # may be temporary, so the next packing reads the image again
_PARTIAL = ".partial"
MOST_RECORD_BYTES = 2**30  # enough for ten million images, or for a million grey images of more than 8 bits


# float32, little-endian, in base64: a fifth of the memory of a list of numbers
Sample = Annotated[
    str, Field(pattern=r"^(?:[A-Za-z0-9+/]{16})*(?:[A-Za-z0-9+/]{16}|[A-Za-z0-9+/]{11}=|[A-Za-z0-9+/]{6}==)$")
]


@dataclass(frozen=True)
class ShardJob:
    """The images of one shard, in order, and the folder of the finished shard. `fingerprint` names its files."""

    records: list[Record]
    root: Path
    folder: Path
    skip_bad: bool
    fingerprint: str

    def file(self, suffix: str) -> Path:
        return self.folder / (self.fingerprint + suffix)


class FinishedShard(Document):
    """The facts of a written shard, from which its rows are made without reading the shard again."""

    bytes: int = Field(0, description="size of the tar; 0 if every image was bad, so that there is no tar")
    sha256: str = ""
    offset: list[int] = Field(description="of every packed image, in order")
    size: list[int]
    bad: dict[int, str] = Field(description="index in the job, from 0 -> why the image is left out")
    samples: dict[int, Sample] = Field(
        {}, description="index of a grey image of more than 8 bits -> some of its values"
    )
    narrowed: list[int] = Field([], description="indices of images of which only the upper 8 of 16 bits are used")


def plan(records: list[Record], root: Path, folder: Path, limit: int, skip_bad: bool) -> Iterator[ShardJob]:
    """Divide the records into shards. A new shard begins with the first identity after `limit` bytes.

    So all images of an identity are in one shard. Raises InputError if an image is outside `root`.
    """
    inside = _Inside(root)
    group: list[Record] = []
    stamps: list[tuple[int, int]] = []
    filled = 0
    for record in records:
        if filled >= limit and record.pid != group[-1].pid:
            yield ShardJob(group, root, folder, skip_bad, _fingerprint(group, stamps, root))
            group, stamps, filled = [], [], 0
        group.append(record)
        stamps.append(_stamp(record.path, inside))
        filled += 3 * BLOCK + padded(max(0, stamps[-1][0]))  # the image and its facts, with a header each
    yield ShardJob(group, root, folder, skip_bad, _fingerprint(group, stamps, root))


def finished(job: ShardJob) -> FinishedShard | None:
    """The result of this job if an earlier, interrupted packing finished it, or None."""
    try:
        found = read_document(job.file(".json"), FinishedShard, MOST_RECORD_BYTES)
        if not len(found.offset) == len(found.size) == len(job.records) - len(found.bad):
            return None
        if found.offset and (job.file(".tar").stat().st_size != found.bytes or not job.file(".idx").is_file()):
            return None
    except (OSError, InputError):
        return None
    if any(not 0 <= place < len(job.records) for place in (*found.samples, *found.narrowed)):
        return None
    if any(not job.skip_bad or reason.startswith(_UNREAD) for reason in found.bad.values()):
        return None
    return found


def write_shard(job: ShardJob, progress: Progress) -> FinishedShard:
    """Write the shard. Its record is written last and marks it as finished.

    Raises InputError if an image is bad and `job.skip_bad` is false.
    """
    partial = job.file(".tar" + _PARTIAL)
    written = _Written()
    try:
        with partial.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for place, record in enumerate(job.records):
                    data, looked = _read(record.path)
                    if isinstance(looked, Looked):
                        written.components.append(_add_sample(tar, record, data, relative(record.path, job.root)))
                        written.note(place, looked)
                    else:
                        written.bad[place] = _allowed(looked, record, job)
                    progress(1)
            sync(file)
        result = _finish(job, partial, written)
    except OSError as error:
        error.filename = error.filename or str(partial)  # the error of a full disk names no file
        raise
    return result


@dataclass
class _Written:
    """The results so far, with the indices of `FinishedShard`."""

    components: list[tuple[Component, Component]] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)
    samples: dict[int, str] = field(default_factory=dict)
    narrowed: list[int] = field(default_factory=list)

    def note(self, place: int, looked: Looked) -> None:
        if looked.sample is not None:
            self.samples[place] = base64.b64encode(looked.sample.astype("<f4").tobytes()).decode()
        if looked.narrowed:
            self.narrowed.append(place)


def _finish(job: ShardJob, partial: Path, written: _Written) -> FinishedShard:
    """Give the files their names and write the record; each is on the disk before the next is begun."""
    if written.components:
        write_text(job.file(".idx"), index_text(written.components))
        size, sha256 = partial.stat().st_size, sha256_of(partial)
        os.replace(partial, job.file(".tar"))
    else:
        partial.unlink()
        size, sha256 = 0, ""
    images = [image for image, _ in written.components]
    result = FinishedShard(
        bytes=size,
        sha256=sha256,
        offset=[image.offset for image in images],
        size=[image.size for image in images],
        bad=written.bad,
        samples=written.samples,
        narrowed=written.narrowed,
    )
    write_whole(job.file(".json"), result.model_dump_json())
    return result


def relative(path: Path, root: Path) -> str:
    """The image's path relative to `root`, as the facts record it. Raises InputError if it is not below `root`."""
    name, top = os.fspath(path), os.fspath(root) + "/"
    if name.startswith(top) and "/../" not in name[len(top) - 1 :]:  # the same as pathlib below, but many times faster
        return name[len(top) :]
    try:
        source = path.relative_to(root)
    except ValueError:
        source = None
    if source is None or ".." in source.parts:
        raise InputError(
            f"expected every image below {shown(root)}, got {shown(path)}; name it relative to --root, without .."
        )
    return source.as_posix()


class _Inside:
    """Refuses images that lie outside the root because they, or their folder, are symbolic links."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._top = os.path.realpath(root)
        self._folders: set[str] = set()

    def check(self, path: str) -> None:
        real = os.path.realpath(path)
        if os.path.commonpath([real, self._top]) != self._top:
            raise InputError(
                f"expected images below {shown(self.root)}, but {shown(path)} is a link to elsewhere; copy it there"
            )

    def check_folder(self, folder: str) -> None:
        if folder not in self._folders:
            self.check(folder)
            self._folders.add(folder)


def _stamp(path: Path, inside: _Inside) -> tuple[int, int]:
    """Size in bytes and time of the last change; (-1, -1) for a missing file, which is reported when it is read.

    Raises InputError if the file is outside the root.
    """
    name = os.fspath(path)
    inside.check_folder(os.path.dirname(name))
    try:
        facts = os.lstat(name)
        if stat.S_ISLNK(facts.st_mode):
            inside.check(name)
            facts = os.stat(name)
    except (OSError, ValueError):
        return -1, -1
    return facts.st_size, facts.st_mtime_ns


def _fingerprint(group: list[Record], stamps: list[tuple[int, int]], root: Path) -> str:
    """Hash of the images' names, paths, splits, sizes and times.

    `skip_bad` is not part of it, because it does not change a shard without bad images. So a user who adds --skip-bad
    after a bad image was found keeps the shards that are finished.
    """
    hashed = hashlib.sha256(f"{RECIPE}\n".encode())
    for record, stamp in zip(group, stamps, strict=True):
        hashed.update(json.dumps([record.key, relative(record.path, root), record.split, *stamp]).encode() + b"\n")
    return hashed.hexdigest()[:32]


def _read(path: Path) -> tuple[bytes, Looked | str]:
    """The bytes of the image file, with either what was found out about the image or what is wrong with it."""
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # reading a named pipe could block for ever
            return b"", f"{_UNREAD} (not a file)"
        if facts.st_size > MOST_BYTES:
            return b"", f"{facts.st_size:,} bytes, more than {MOST_BYTES:,}"
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        return b"", f"{_UNREAD} ({getattr(error, 'strerror', error)})"
    try:
        return data, look(data)
    except ImageError as problem:
        return data, str(problem)


def _allowed(problem: str, record: Record, job: ShardJob) -> str:
    if not job.skip_bad:
        raise InputError(
            f"{shown(relative(record.path, job.root))} is not a usable image: {problem}; restore the file, or leave it"
            " out with --skip-bad"
        )
    return problem


def _add_sample(tar: tarfile.TarFile, record: Record, image: bytes, source: str) -> tuple[Component, Component]:
    facts = {"pid": record.pid, "camid": record.camid, "modality": record.modality.value}
    text = json.dumps({**facts, "split": record.split and record.split.value, "source": as_text(source)})
    extension = record.path.suffix[1:].lower()
    return add_member(tar, record.key, extension, image), add_member(tar, record.key, "json", text.encode())
