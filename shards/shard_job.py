"""One shard, written by whichever process has time: tar, DALI's index, and the record that makes it count as finished.

A shard's files are named by its fingerprint: a hash of everything its bytes depend on. So an interrupted packing goes
on from what fits, and what no longer fits is told apart by its name.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from shards.output import sync, write_text
from shards.record import Record
from shards.tar import BLOCK, Component, add_member, index_text, padded
from shards.workers import Progress
from tacaf.files import sha256_of, sync_folder
from tacaf.images import header_problem
from tacaf.vocabulary import InputError

RECIPE = 1  # changes whenever the same images give other bytes
_UNREAD = "cannot be read"  # says nothing about the image: it is tried again by the next packing
_PARTIAL = ".partial"


@dataclass(frozen=True)
class ShardJob:
    """The images of one shard in order, and where the finished shard goes. `fingerprint` names its files."""

    records: list[Record]
    root: Path
    folder: Path
    skip_bad: bool
    fingerprint: str

    def file(self, suffix: str) -> Path:
        return self.folder / (self.fingerprint + suffix)


class FinishedShard(BaseModel, extra="forbid", frozen=True):
    """What is known of a written shard: enough to make its rows without reading it again."""

    bytes: int = Field(0, description="of the tar; 0 where every image was bad and there is none")
    sha256: str = ""
    offset: list[int] = Field(description="of every packed image in order")
    size: list[int]
    bad: dict[int, str] = Field(description="place in the job, from 0 -> why the image is left out")


def plan(records: list[Record], root: Path, folder: Path, limit: int, skip_bad: bool) -> Iterator[ShardJob]:
    """Cut into shards: a new one begins with the first identity after `limit` bytes, so no identity is ever cut."""
    group: list[Record] = []
    stamps: list[tuple[int, int]] = []
    filled = 0
    for record in records:
        if filled >= limit and record.pid != group[-1].pid:
            yield ShardJob(group, root, folder, skip_bad, _fingerprint(group, stamps, root))
            group, stamps, filled = [], [], 0
        group.append(record)
        stamps.append(_stamp(record.path))
        filled += 3 * BLOCK + padded(max(0, stamps[-1][0]))  # image and facts, each with a header
    yield ShardJob(group, root, folder, skip_bad, _fingerprint(group, stamps, root))


def finished(job: ShardJob) -> FinishedShard | None:
    """The shard of an earlier, interrupted packing that is this job's result, or None."""
    try:
        found = FinishedShard.model_validate_json(job.file(".json").read_bytes())
        if found.offset and (job.file(".tar").stat().st_size != found.bytes or not job.file(".idx").is_file()):
            return None
    except (OSError, ValidationError):
        return None
    if any(not job.skip_bad or reason.startswith(_UNREAD) for reason in found.bad.values()):
        return None
    return found


def write_shard(job: ShardJob, progress: Progress) -> FinishedShard:
    """Write the shard; only its record, written last, makes it count. InputError for a bad image, unless skipped."""
    partial = job.file(".tar" + _PARTIAL)
    samples: list[tuple[Component, Component]] = []
    bad: dict[int, str] = {}
    try:
        with partial.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for place, record in enumerate(job.records):
                    data, problem = _read(record.path)
                    if problem is None:
                        samples.append(_add_sample(tar, record, data, relative(record.path, job.root)))
                    else:
                        bad[place] = _allowed(problem, record, job)
                    progress(1)
            sync(file)
        result = _finish(job, partial, samples, bad)
    except OSError as error:
        error.filename = error.filename or str(partial)  # a full disk does not say where
        raise
    return result


def _finish(
    job: ShardJob, partial: Path, samples: list[tuple[Component, Component]], bad: dict[int, str]
) -> FinishedShard:
    """Name the files and write the record, each on the disk before the next."""
    if samples:
        write_text(job.file(".idx"), index_text(samples))
        size, sha256 = partial.stat().st_size, sha256_of(partial)
        os.replace(partial, job.file(".tar"))
    else:
        partial.unlink()
        size, sha256 = 0, ""
    images = [image for image, _ in samples]
    result = FinishedShard(
        bytes=size, sha256=sha256, offset=[i.offset for i in images], size=[i.size for i in images], bad=bad
    )
    record = job.file(".json" + _PARTIAL)
    write_text(record, result.model_dump_json())
    os.replace(record, job.file(".json"))
    sync_folder(job.folder)
    return result


def relative(path: Path, root: Path) -> str:
    """The image's place below `root`, as the facts name it. InputError if it is elsewhere."""
    try:
        source = path.relative_to(root)
    except ValueError:
        source = None
    if source is None or ".." in source.parts:
        raise InputError(f"expected every image below {root}, got {path}; name it relative to --root, without ..")
    return source.as_posix()


def _stamp(path: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change; (-1, -1) for a missing file, which is reported when its turn comes."""
    try:
        facts = path.stat()
    except OSError:
        return -1, -1
    return facts.st_size, facts.st_mtime_ns


def _fingerprint(group: list[Record], stamps: list[tuple[int, int]], root: Path) -> str:
    """Of the images' names, places, splits, sizes and times. Not of `skip_bad`: it changes no shard without bad images,
    so who adds it after a bad image was found keeps what was written before."""
    hashed = hashlib.sha256(f"{RECIPE}\n".encode())
    for record, stamp in zip(group, stamps, strict=True):
        hashed.update(json.dumps([record.key, relative(record.path, root), record.split, *stamp]).encode() + b"\n")
    return hashed.hexdigest()[:32]


def _read(path: Path) -> tuple[bytes, str | None]:
    try:
        data = path.read_bytes()
    except OSError as error:
        return b"", f"{_UNREAD} ({error.strerror})"
    return data, header_problem(data)


def _allowed(problem: str, record: Record, job: ShardJob) -> str:
    if not job.skip_bad:
        raise InputError(
            f"{relative(record.path, job.root)}: expected a whole image, got: {problem}; restore the file, or leave it "
            "out with --skip-bad"
        )
    return problem


def _add_sample(tar: tarfile.TarFile, record: Record, image: bytes, source: str) -> tuple[Component, Component]:
    facts = {"pid": record.pid, "camid": record.camid, "modality": record.modality.value}
    text = json.dumps({**facts, "split": record.split and record.split.value, "source": source})
    extension = record.path.suffix[1:].lower()
    return add_member(tar, record.key, extension, image), add_member(tar, record.key, "json", text.encode())
