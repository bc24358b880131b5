"""Writes a shard set (house §4): tars, DALI indices, columns, index.json last. The same input gives the same bytes.

A data set is one small file that turns its folders into `Record`s and calls `pack`.
"""

import json
import tarfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
from tqdm import tqdm

from shards.images import SUFFIXES, header_problem
from shards.index_file import NO_SPLIT, ColumnFacts, IndexFile, LeftOut, ShardFacts, tally
from shards.output import file_sha256, new_set, sync, write_text
from shards.tar import BLOCK, Component, add_member, index_text, padded
from tacaf.vocabulary import COLUMN_FOLDER, COLUMNS, INDEX_FILE, InputError, Modality, Split, sample_key


@dataclass(frozen=True)
class Record:
    """One image of a raw data set. `number` is its 1-based place in its camera/pid folder, file names ascending;
    `camid` is 0 in a set without cameras; `split` is None where splits are only named pid lists.
    """

    path: Path
    pid: int
    camid: int
    modality: Modality
    split: Split | None
    number: int

    @property
    def key(self) -> str:
        return sample_key(self.modality, self.pid, self.camid, self.number)


@dataclass(frozen=True)
class Omission:
    """Something of the raw set that is not packed: a file, or a folder with several `images`."""

    path: str
    reason: str
    images: int = 1


class PackOptions(TypedDict, total=False):
    """What every data set's `pack` takes."""

    shard_mib: int  # a new shard starts at the first identity after this size; default 256
    skip_bad: bool  # leave unreadable images out and list them, instead of stopping; default False
    overwrite: bool  # replace an existing shard set once the new one is whole; default False


@dataclass(frozen=True)
class Packed:
    """A finished set and what its user should know about it."""

    folder: Path
    index: IndexFile
    warnings: tuple[str, ...] = ()

    def warn(self, *texts: str) -> "Packed":
        return replace(self, warnings=(*self.warnings, *texts))

    def summary(self) -> str:
        """A few lines for the terminal."""
        index, parts = self.index, []
        for name, counts in list(index.counts.items())[:4]:
            parts.append(
                f"{name} " + " + ".join(f"{counts[m].images} {m} of {counts[m].pids} identities" for m in counts)
            )
        more = f"; and {len(index.counts) - 4} more splits" if len(index.counts) > 4 else ""
        lines = [
            f"{self.folder}: {index.images} images in {len(index.shards)} shard{'s' * (len(index.shards) != 1)}",
            "; ".join(parts) + more,
        ]
        if index.left_out_count:
            lines.append(f"{index.left_out_count} images left out, listed in {INDEX_FILE} (left_out)")
        return "\n".join(lines + [f"warning: {text}" for text in self.warnings])


def pack(
    records: Iterable[Record],
    out: Path,
    name: str,
    splits: Mapping[str, Collection[int]],
    *,
    root: Path,
    source: str,
    locations: Mapping[int, int] | None = None,
    pid_names: Mapping[int, str] | None = None,
    left_out: Iterable[Omission] = (),
    warnings: Iterable[str] = (),
    shard_mib: int = 256,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> Packed:
    """Write the shard set `out` from images below `root`.

    `splits` are named pid lists, `locations` maps camid to location, `pid_names` pid to the data set's own name.
    InputError, with `out` as it was before: nothing to pack, a split without identities or without one modality, an
    unreadable image, two images with one key, an output folder in the way.
    """
    out = Path(out).resolve()
    if shard_mib < 1:
        raise InputError(f"expected --shard-mib of at least 1, got {shard_mib}; 256 is usual")
    ordered = _ordered(records)
    _check_membership(ordered, splits)
    with new_set(out, overwrite) as folder:
        content = _write_shards(ordered, folder, name, root, shard_mib, skip_bad)
        columns = {column: np.array(values, dtype=COLUMNS[column]) for column, values in content.columns.items()}
        kept = {split: sorted(set(pids).intersection(content.columns["pid"])) for split, pids in splits.items()}
        omissions = sorted([*left_out, *content.bad], key=lambda omission: omission.path)
        index = IndexFile(
            name=name,
            images=len(columns["pid"]),
            counts=tally(columns["pid"], columns["modality"], kept),
            splits=kept,
            pid_names=None if pid_names is None else dict(sorted(pid_names.items())),
            locations=None if locations is None else dict(sorted(locations.items())),
            shards=content.shards,
            columns={column: _write_column(folder, column, values) for column, values in columns.items()},
            left_out=[LeftOut(path=omission.path, reason=omission.reason) for omission in omissions],
            left_out_count=sum(omission.images for omission in omissions),
            source=source,
        )
        _check_counts(index)
        write_text(folder / INDEX_FILE, index.to_json())
    return Packed(out, index, (*warnings, *_missing(splits, kept)))


@dataclass
class _Content:
    shards: list[ShardFacts] = field(default_factory=list)
    columns: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in COLUMNS})
    bad: list[Omission] = field(default_factory=list)


def _ordered(records: Iterable[Record]) -> list[Record]:
    """The records in the order of the rows. InputError for none, for a number out of range, for two with one key."""
    ordered = sorted(records, key=lambda r: (r.pid, r.modality.code, r.camid, r.number))
    if not ordered:
        raise InputError("expected images to pack, found none; check --root")
    for before, record in zip([None, *ordered], ordered, strict=False):
        if record.pid < 0 or not 0 <= record.camid < 2**15 or record.number < 1:
            raise InputError(
                f"{record.path}: expected pid >= 0, camid from 0 to 32767 and number >= 1, "
                f"got {record.pid}, {record.camid}, {record.number}; mend the data set's list"
            )
        if before is not None and before.key == record.key:
            raise InputError(
                f"expected one image for the key {record.key}, got {before.path} and {record.path}; remove one"
            )
        if record.path.suffix.lower() not in SUFFIXES:
            raise InputError(f"{record.path}: expected an image ({', '.join(SUFFIXES)}); leave it out of the list")
    return ordered


def _check_membership(ordered: list[Record], splits: Mapping[str, Collection[int]]) -> None:
    members = {split: set(splits.get(split, ())) for split in Split}
    for record in ordered:
        if record.split is not None and record.pid not in members[record.split]:
            raise InputError(
                f"{record.path}: expected the list of split {record.split} to name pid {record.pid}; mend the list"
            )


def _write_shards(ordered: list[Record], folder: Path, name: str, root: Path, mib: int, skip_bad: bool) -> _Content:
    content = _Content()
    with tqdm(total=len(ordered), desc="pack", unit=" images", disable=None) as bar:
        for group in _groups(ordered, mib * 2**20):
            path = folder / f"{name}-{len(content.shards):06d}.tar"
            _write_shard(group, path, root, skip_bad, content, bar)
    return content


def _groups(ordered: list[Record], limit: int) -> Iterator[list[Record]]:
    """Cut into shards: a new one begins with the first identity after `limit` bytes, so no identity is ever cut."""
    group: list[Record] = []
    filled = 0
    for record in ordered:
        if filled >= limit and record.pid != group[-1].pid:
            yield group
            group, filled = [], 0
        group.append(record)
        # image and facts, each with a header; a file that cannot be read is reported when its turn comes
        filled += 3 * BLOCK + (padded(record.path.stat().st_size) if record.path.is_file() else 0)
    yield group


def _write_shard(group: list[Record], path: Path, root: Path, skip_bad: bool, content: _Content, bar: tqdm) -> None:
    samples: list[tuple[Component, Component]] = []
    with path.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for record in group:
                bar.update()
                source = _relative(record.path, root)
                data, problem = _read(record.path)
                if problem is not None:
                    _bad_image(source, problem, skip_bad)
                    content.bad.append(Omission(source, problem))
                    continue
                samples.append(_add_sample(tar, record, data, _facts(record, source)))
                _add_row(content.columns, record, len(content.shards), samples[-1][0])
        sync(file)
    if not samples:  # nothing but bad images
        path.unlink()
        return
    write_text(path.with_suffix(".idx"), index_text(samples))
    content.shards.append(
        ShardFacts(name=path.name, bytes=path.stat().st_size, sha256=file_sha256(path), images=len(samples))
    )


def _add_row(columns: dict[str, list[int]], record: Record, shard: int, image: Component) -> None:
    row = {
        "shard": shard,
        "offset": image.offset,
        "size": image.size,
        "pid": record.pid,
        "camid": record.camid,
        "modality": record.modality.code,
        "split": NO_SPLIT if record.split is None else record.split.code,
        "number": record.number,
    }
    for name, value in row.items():
        columns[name].append(value)


def _read(path: Path) -> tuple[bytes, str | None]:
    try:
        data = path.read_bytes()
    except OSError as error:
        return b"", f"cannot be read ({error.strerror})"
    return data, header_problem(data)


def _bad_image(source: str, problem: str, skip_bad: bool) -> None:
    if not skip_bad:
        raise InputError(
            f"{source}: expected a whole image, got: {problem}; restore the file, or leave it out with --skip-bad"
        )


def _relative(path: Path, root: Path) -> str:
    try:
        source = path.relative_to(root)
    except ValueError:
        source = None
    if source is None or ".." in source.parts:
        raise InputError(f"expected every image below {root}, got {path}; name it relative to --root, without ..")
    return source.as_posix()


def _facts(record: Record, source: str) -> bytes:
    facts = {"pid": record.pid, "camid": record.camid, "modality": record.modality.value}
    return json.dumps({**facts, "split": record.split and record.split.value, "source": source}).encode()


def _add_sample(tar: tarfile.TarFile, record: Record, image: bytes, facts: bytes) -> tuple[Component, Component]:
    extension = record.path.suffix[1:].lower()
    return add_member(tar, record.key, extension, image), add_member(tar, record.key, "json", facts)


def _write_column(folder: Path, name: str, values: np.ndarray) -> ColumnFacts:
    path = folder / COLUMN_FOLDER / f"{name}.npy"
    with path.open("wb") as file:
        np.save(file, values, allow_pickle=False)
        sync(file)
    return ColumnFacts(dtype=COLUMNS[name], sha256=file_sha256(path))


def _check_counts(index: IndexFile) -> None:
    for split, counts in index.counts.items():
        if not index.splits[split]:
            raise InputError(
                f"expected identities with images in split {split}, found none; check its list and the folders"
            )
        for modality, found in counts.items():
            if not found.images:
                raise InputError(
                    f"expected {modality} images in split {split}, found none; both are needed, check --root"
                )


def _missing(splits: Mapping[str, Collection[int]], kept: dict[str, list[int]]) -> Iterator[str]:
    for split, pids in splits.items():
        missing = sorted(set(pids).difference(kept[split]))
        if missing:
            yield f"{len(missing)} identities of the list {split} have no images, the first is {missing[0]}"
