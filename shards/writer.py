"""Writes a shard set (docs/shard_format.md): tars, DALI indices, columns, index.json last. Same input, same bytes.

Each data set has a small module in `shards.sources` that turns its folders into `Record`s and calls `pack`.
"""

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
from tqdm import tqdm

from shards.grey_range import scales_of
from shards.output import Workplace, link, new_set, write_text
from shards.shard_job import FinishedShard, ShardJob, finished, plan, relative, write_shard
from shards.sources.layout import is_image_name
from shards.sources.record import Omission, Record
from shards.workers import in_order, process_count
from tacaf.files import as_text, sha256_of, shown
from tacaf.images import SUFFIXES, GreyScale
from tacaf.shard_columns import NO_SPLIT, column_bytes, member_of, tally
from tacaf.shard_set import ColumnFacts, IndexFile, LeftOut, ShardFacts, Tally, read_index
from tacaf.vocabulary import COLUMNS, INDEX_FILE, InputError, Modality, Split

MOST_REASON = 1000  # characters of the reason why an image was left out


class PackOptions(TypedDict, total=False):
    """The options of every data set's `pack`."""

    shard_mib: int  # a new shard starts at the first identity after this size; default 256
    skip_bad: bool  # leave unreadable images out and list them, instead of stopping; default False
    overwrite: bool  # replace an existing shard set once the new one is complete; default False
    workers: int | None  # processes; default one per core, and only this one for a small set
    thermal_range: GreyScale | None  # grey range of infrared images of more than 8 bits; by default it is measured


@dataclass(frozen=True)
class Packed:
    """A finished set, and warnings about it for the user."""

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
            f"{shown(self.folder)}: {index.images} images in {len(index.shards)} shard{'s' * (len(index.shards) != 1)}",
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
    workers: int | None = None,
    thermal_range: GreyScale | None = None,
) -> Packed:
    """Write the shard set `out` from images below `root`: the same bytes for any number of `workers`.

    `splits` are named pid lists, `locations` maps camid to location, `pid_names` pid to the data set's own name.
    Raises InputError, and leaves `out` unchanged, if there is nothing to pack, a split has no identities or lacks a
    modality, an image is unreadable, two images have the same key, or `out` may not be replaced. After an error or a
    kill, the finished shards are kept beside `out`, and the next packing of the same files resumes from them.
    """
    out = Path(out).resolve()
    if shard_mib < 1:
        raise InputError(f"expected --shard-mib of at least 1, got {shard_mib}; 256 is usual")
    ordered = _ordered(records)
    _check_membership(ordered, splits)
    processes = process_count(workers, len(ordered))
    with new_set(out, overwrite) as place:
        folder = place.set
        jobs = list(plan(ordered, root, place.shards, shard_mib * 2**20, skip_bad))
        written = list(zip(jobs, _write_shards(jobs, place, processes), strict=True))
        content = _collect(written, name)
        scales, about_scales = scales_of(written, thermal_range)
        if not content.shards:
            raise InputError(
                f"none of the {len(ordered)} images can be used, the first is {content.bad[0].describe()}; check --root"
            )
        columns = {column: np.array(values, dtype=COLUMNS[column]) for column, values in content.columns.items()}
        kept = {split: sorted(set(pids).intersection(content.columns["pid"])) for split, pids in splits.items()}
        counts = tally(columns["pid"], columns["modality"], kept)
        check_counts(kept, counts)
        omissions = sorted([*left_out, *content.bad], key=lambda omission: omission.path)
        index = IndexFile(
            name=name,
            images=len(columns["pid"]),
            counts=counts,
            splits=kept,
            pid_names=None if pid_names is None else dict(sorted(pid_names.items())),
            locations=None if locations is None else dict(sorted(locations.items())),
            shards=content.shards,
            columns={column: write_column(folder, column, values) for column, values in columns.items()},
            left_out=[LeftOut(path=as_text(o.path), reason=shown(o.reason)[:MOST_REASON]) for o in omissions],
            left_out_count=sum(omission.images for omission in omissions),
            source=source,
            scales=scales,
        )
        back = _back(out, kept_pids=set(content.columns["pid"]))
        for job, shard in zip(content.jobs, content.shards, strict=True):
            _place(job, folder / shard.name)
        write_text(folder / INDEX_FILE, index.to_json())
    return Packed(out, index, (*warnings, *about_scales, *_missing(splits, kept), *back))


@dataclass
class _Content:
    shards: list[ShardFacts] = field(default_factory=list)
    jobs: list[ShardJob] = field(default_factory=list)  # of `shards`, one by one
    columns: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in COLUMNS})
    bad: list[Omission] = field(default_factory=list)


def _ordered(records: Iterable[Record]) -> list[Record]:
    """The records in the order of the set's rows.

    Raises InputError if there are none, a number is out of range, or two records have the same key.
    """
    ordered = sorted(records, key=lambda r: (r.pid, r.modality.code, r.camid, r.number))
    if not ordered:
        raise InputError("expected images to pack, found none; check --root")
    for before, record in zip([None, *ordered], ordered, strict=False):
        if not (0 <= record.pid < 2**62 and 0 <= record.camid < 2**15 and 1 <= record.number < 2**31):
            raise InputError(
                f"{shown(record.path)}: expected pid >= 0, camid from 0 to 32767 and number >= 1, "
                f"got {record.pid}, {record.camid}, {record.number}; correct the data set's list"
            )
        if before is not None and before.key == record.key:
            raise InputError(
                f"expected one image for the key {record.key}, got {shown(before.path)} and {shown(record.path)};"
                " remove one"
            )
        if not is_image_name(record.path.name):
            raise InputError(
                f"{shown(record.path)}: expected an image ({', '.join(SUFFIXES)}); leave it out of the list"
            )
    return ordered


def _check_membership(ordered: list[Record], splits: Mapping[str, Collection[int]]) -> None:
    """Raises InputError if splits and records contradict each other, before hours of writing."""
    members = {split: set(splits.get(split, ())) for split in Split}
    for record in ordered:
        if record.split is not None and record.pid not in members[record.split]:
            raise InputError(
                f"{shown(record.path)}: expected the list of split {record.split} to name pid {record.pid};"
                " correct the list"
            )
    pids = np.array([record.pid for record in ordered])
    kept = {split: sorted(set(members).intersection(pids.tolist())) for split, members in splits.items()}
    check_counts(kept, tally(pids, np.array([record.modality.code for record in ordered]), kept))


def _write_shards(jobs: list[ShardJob], place: Workplace, processes: int) -> list[FinishedShard]:
    """Every shard, in order. Those that an interrupted packing finished are used; up to `processes` workers write the
    others.
    """
    done = {number: shard for number, job in enumerate(jobs) if (shard := finished(job)) is not None}
    _drop_strangers(place, {jobs[number].fingerprint for number in done})
    if done:
        print(f"{place.out}: resuming with {len(done)} of {len(jobs)} shards already finished", file=sys.stderr)
    missing = [number for number in range(len(jobs)) if number not in done]
    images = sum(len(job.records) for job in jobs)
    there = sum(len(jobs[number].records) for number in done)
    with tqdm(total=images, initial=there, desc="pack", unit=" images", disable=None) as bar:
        results = in_order(write_shard, [jobs[number] for number in missing], processes, bar)
        done |= dict(zip(missing, results, strict=True))
    return [done[number] for number in range(len(jobs))]


def _drop_strangers(place: Workplace, usable: set[str]) -> None:
    """Remove all shards but the usable ones: unfinished ones, and, with a message, those of other images or options."""
    strangers = {path.stem for path in place.shards.glob("*.json")} - usable
    for path in place.shards.iterdir():
        if path.name.partition(".")[0] not in usable:
            path.unlink()
    if strangers:
        print(
            f"{place.out}: dropped {len(strangers)} finished shard{'s' * (len(strangers) != 1)} of an earlier packing, "
            "because images, lists or options have changed since",
            file=sys.stderr,
        )


def _collect(shards: Iterable[tuple[ShardJob, FinishedShard]], name: str) -> _Content:
    """The rows of the set and the numbered shards. A shard in which every image is bad is left out."""
    content = _Content()
    for job, shard in shards:
        content.bad += [Omission(relative(job.records[n].path, job.root), why) for n, why in shard.bad.items()]
        if not shard.offset:
            continue
        number = len(content.shards)
        packed = [record for n, record in enumerate(job.records) if n not in shard.bad]
        for record, offset, size in zip(packed, shard.offset, shard.size, strict=True):
            _add_row(content.columns, record, number, offset, size)
        file = f"{name}-{number:06d}.tar"
        content.shards.append(ShardFacts(name=file, bytes=shard.bytes, sha256=shard.sha256, images=len(shard.offset)))
        content.jobs.append(job)
    return content


def _place(job: ShardJob, tar: Path) -> None:
    """Give a finished shard its name in the set, as a hard link, so that the finished shard survives a later failure.

    On a file system without hard links it is moved, and a later failure loses it; this is why it is done so late.
    """
    for suffix in (".tar", ".idx"):
        if not link(job.file(suffix), tar.with_suffix(suffix)):
            job.file(suffix).rename(tar.with_suffix(suffix))


def _add_row(columns: dict[str, list[int]], record: Record, shard: int, offset: int, size: int) -> None:
    row = {
        "shard": shard,
        "offset": offset,
        "size": size,
        "pid": record.pid,
        "camid": record.camid,
        "modality": record.modality.code,
        "split": NO_SPLIT if record.split is None else record.split.code,
        "number": record.number,
    }
    for name, value in row.items():
        columns[name].append(value)


def write_column(folder: Path, name: str, values: np.ndarray) -> ColumnFacts:
    """Write one column of the set in `folder`. Returns its facts for the index."""
    path = folder / member_of(name)
    write_text(path, column_bytes(values))
    return ColumnFacts(dtype=COLUMNS[name], sha256=sha256_of(path))


def check_counts(splits: Mapping[str, Collection[int]], counts: Mapping[str, Mapping[Modality, Tally]]) -> None:
    """Raises InputError if a split has no identities, or no images of one modality."""
    for split, by_modality in counts.items():
        if not splits[split]:
            raise InputError(
                f"expected identities with images in split {split}, found none; check its list and the folders"
            )
        for modality, found in by_modality.items():
            if not found.images:
                raise InputError(
                    f"expected {modality} images in split {split}, found none; "
                    "both modalities are needed, check the list and --root"
                )


def _missing(splits: Mapping[str, Collection[int]], kept: dict[str, list[int]]) -> Iterator[str]:
    for split, pids in splits.items():
        missing = sorted(set(pids).difference(kept[split]))
        if missing:
            yield f"{len(missing)} identities of the list {split} have no images, the first is {missing[0]}"


def _back(out: Path, kept_pids: set[int]) -> list[str]:
    """Warnings about pids that were removed from the set about to be replaced and are in the new set."""
    removed = read_index(out).removed if (out / INDEX_FILE).exists() else None
    return [
        f"pid {pid} was removed from the set that this one replaces, and is in it again; remove it from this set and "
        "from the raw folder"
        for pid in (removed.pids if removed else ())
        if pid in kept_pids
    ]
