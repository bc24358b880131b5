"""Checks a shard set against its own index: structure, counts, sizes; and, unless quick, every hash and sample."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from shards.verify_shard import MODALITIES, SPLITS, Columns, ShardCheck, check_shard
from shards.workers import in_order, process_count
from tacaf.files import sha256_of
from tacaf.shard_set import IndexFile, read_column, read_index, row_key, tally
from tacaf.vocabulary import COLUMN_FOLDER, COLUMNS, InputError, Modality, Split


def verify(folder: Path, quick: bool = False, workers: int | None = None) -> list[str]:
    """The problems of the shard set in `folder`, one line each, naming shard and sample; empty if it is sound.

    `quick` leaves out what reads the tars: hashes, members, facts, decoding. Up to `workers` processes check the shards
    (default: one a core, and this one alone for a small set); the problems and their order are the same. InputError if
    there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"expected the folder of a shard set, got {folder}, which is none; check the path")
    try:
        index = read_index(folder)
    except InputError as error:
        return [str(error)]
    processes = 1 if quick else process_count(workers, index.images)
    problems = list(_check_files(folder, index))
    columns: Columns = {}
    for name in COLUMNS:
        try:
            columns[name] = read_column(folder, name, index.images)
        except InputError as error:
            problems.append(str(error))
    trusted = None  # the columns, once the places in the tars can be trusted to be rows of this set
    if len(columns) == len(COLUMNS):
        wrong = list(_check_rows(index, columns))
        problems += [*wrong, *_check_counts(index, columns)]
        trusted = None if wrong else columns
    return problems + _check_shards(folder, index, trusted, quick, processes)


def _check_files(folder: Path, index: IndexFile) -> Iterator[str]:
    """The files of the set: there, of the stated size, and no others."""
    names = [shard.name for shard in index.shards]
    for shard in index.shards:
        path = folder / shard.name
        if not path.is_file():
            yield f"{shard.name}: expected this shard, found none; copy it again"
        elif path.stat().st_size != shard.bytes:
            got = path.stat().st_size
            yield f"{shard.name}: expected {shard.bytes} bytes, got {got}; cut or another file, copy it again"
        if not path.with_suffix(".idx").is_file():
            yield f"{path.with_suffix('.idx').name}: expected DALI's index of {shard.name}, found none; copy it again"
    if len(set(names)) != len(names):
        yield "index.json: expected every shard once, got one twice"
    for path in sorted(folder.glob("*.tar")):
        if path.name not in names:
            yield f"{path.name}: a shard that index.json does not name; remove it or pack the set again"
    if set(index.columns) != set(COLUMNS):
        yield f"index.json: expected the columns {', '.join(COLUMNS)}, got {', '.join(index.columns)}"
    for name, facts in index.columns.items():
        if facts.dtype != COLUMNS.get(name, facts.dtype):
            yield f"index.json: column {name}: expected {COLUMNS[name]}, got {facts.dtype}"


def _check_rows(index: IndexFile, columns: Columns) -> Iterator[str]:
    """The columns among themselves: known codes, the order of the rows, places that lie in their shard."""
    for name, known in (("modality", list(MODALITIES)), ("split", list(SPLITS)), ("shard", range(len(index.shards)))):
        wrong = np.flatnonzero(~np.isin(columns[name], list(known)))
        if len(wrong):
            yield f"{_column(name)}: row {wrong[0]}: expected one of {list(known)[:4]}, got {columns[name][wrong[0]]}"
            return
    for name in ("pid", "camid", "number", "offset", "size"):
        wrong = np.flatnonzero(columns[name] < (1 if name in ("number", "size") else 0))
        if len(wrong):
            yield f"{_column(name)}: row {wrong[0]}: got {columns[name][wrong[0]]}, which is too small"
    order = np.lexsort([columns[name] for name in ("number", "camid", "modality", "pid")])
    if not np.array_equal(order, np.arange(index.images)):
        row = int(np.flatnonzero(order != np.arange(index.images))[0])
        yield f"columns: row {row} ({row_key(columns, row)}): rows are not sorted by pid, modality, camid, number"
    ends = columns["offset"] + columns["size"]
    for number, shard in enumerate(index.shards):
        rows = np.flatnonzero(columns["shard"] == number)
        if len(rows) != shard.images:
            yield f"{shard.name}: index.json states {shard.images} images, the columns have {len(rows)}"
        if len(rows) and (ends[rows].max() > shard.bytes or (columns["offset"][rows[1:]] < ends[rows[:-1]]).any()):
            yield f"{shard.name}: the columns offset and size overlap or point outside the shard"


def _check_counts(index: IndexFile, columns: Columns) -> Iterator[str]:
    """What index.json states about images, pids and splits, recounted."""
    pids = set(np.unique(columns["pid"]).tolist())
    found = tally(columns["pid"], columns["modality"], index.splits)
    summed = sum(shard.images for shard in index.shards)
    if summed != index.images:
        yield f"index.json: images is {index.images}, its shards add up to {summed}"
    for split in sorted(set(found) | set(index.counts)):
        for modality in Modality:
            got, stated = found.get(split, {}).get(modality), index.counts.get(split, {}).get(modality)
            if got != stated:
                yield f"index.json: counts of {split}, {modality}: stated {stated or 'none'}, recounted {got or 'none'}"
    back = pids.intersection(index.removed.pids if index.removed else ())
    if back:
        yield f"index.json: pid {min(back)} is stated as removed, but has images; remove it again"
    for split, members in index.splits.items():
        if set(members) - pids:
            yield f"index.json: split {split} names pid {min(set(members) - pids)}, which has no image"
        if split in set(Split):
            own = set(np.unique(columns["pid"][columns["split"] == Split(split).code]).tolist())
            if own != set(members):
                yield f"index.json: split {split} and the column split differ at pid {min(own ^ set(members))}"


def _check_shards(folder: Path, index: IndexFile, columns: Columns | None, quick: bool, processes: int) -> list[str]:
    """Every shard's .idx and, unless quick, its members; then the hashes of shards and columns, in their order."""
    checks = []
    for number, shard in enumerate(index.shards):
        rows = None if columns is None else np.flatnonzero(columns["shard"] == number)
        own = None if columns is None else {name: np.asarray(values)[rows] for name, values in columns.items()}
        checks.append(ShardCheck(folder / shard.name, own, quick, shard.sha256))
    problems: list[str] = []
    changed: list[str] = []
    with tqdm(total=index.images, desc="verify", unit=" images", disable=True if quick else None) as bar:
        results = in_order(check_shard, checks, processes, bar)
        for shard, (found, is_same) in zip(index.shards, results, strict=True):
            problems += found
            changed += [] if is_same else [shard.name]
    if not quick:
        changed += [_column(name) for name in index.columns if _is_changed(folder, index, name)]
    end = "its sha256 is not the one in index.json; a byte has changed, copy it again"
    return problems + [f"{name}: {end}" for name in changed]


def _is_changed(folder: Path, index: IndexFile, name: str) -> bool:
    path = folder / _column(name)
    return name in COLUMNS and path.is_file() and sha256_of(path) != index.columns[name].sha256


def _column(name: str) -> str:
    return f"{COLUMN_FOLDER}/{name}.npy"
