"""Checks a shard set against its own index: structure, counts, sizes; and, unless quick, every hash and sample."""

import json
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from shards.images import decode_problem
from shards.index_file import NO_SPLIT, IndexFile, read_column, read_index, row_key, tally
from shards.output import file_sha256
from shards.tar import BLOCK, INDEX_VERSION, Component, index_text, padded
from tacaf.vocabulary import COLUMN_FOLDER, COLUMNS, InputError, Modality, Split

_FACTS_LIMIT = 65_536  # bytes; the facts of a sample take about a hundred
_MODALITIES = {modality.code: modality for modality in Modality}
_SPLITS = {split.code: split.value for split in Split} | {NO_SPLIT: None}

Columns = dict[str, np.ndarray]


def verify(folder: Path, quick: bool = False) -> list[str]:
    """The problems of the shard set in `folder`, one line each, naming shard and sample; empty if it is sound.

    `quick` leaves out what reads the tars: hashes, members, facts, decoding. InputError if there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"expected the folder of a shard set, got {folder}, which is none; check the path")
    try:
        index = read_index(folder)
    except InputError as error:
        return [str(error)]
    problems = list(_check_files(folder, index))
    columns: Columns = {}
    for name in COLUMNS:
        try:
            columns[name] = read_column(folder, name, index.images)
        except InputError as error:
            problems.append(str(error))
    if len(columns) == len(COLUMNS):
        rows = list(_check_rows(index, columns))
        problems += rows
        problems += _check_counts(index, columns)
        if not rows:  # the places in the tars can be trusted to be rows of this set
            problems += _check_shards(folder, index, columns, quick)
    if not quick:
        problems += _check_hashes(folder, index)
    return problems


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
    for name, known in (("modality", list(_MODALITIES)), ("split", list(_SPLITS)), ("shard", range(len(index.shards)))):
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


def _check_hashes(folder: Path, index: IndexFile) -> Iterator[str]:
    expected = {shard.name: shard.sha256 for shard in index.shards}
    expected |= {_column(name): index.columns[name].sha256 for name in COLUMNS if name in index.columns}
    present = [name for name in expected if (folder / name).is_file()]
    with ThreadPoolExecutor(_workers()) as pool:
        for name, found in zip(present, pool.map(file_sha256, [folder / name for name in present]), strict=True):
            if found != expected[name]:
                yield f"{name}: its sha256 is not the one in index.json; a byte has changed, copy it again"


def _check_shards(folder: Path, index: IndexFile, columns: Columns, quick: bool) -> Iterator[str]:
    """Every shard's .idx and, unless quick, its members; shards in parallel, problems in the order of the shards."""

    def check(number: int) -> list[str]:
        path = folder / index.shards[number].name
        rows = np.flatnonzero(columns["shard"] == number)
        problems = list(_check_idx(path.with_suffix(".idx"), columns, rows))
        return problems if quick or not path.is_file() else problems + list(_check_tar(path, columns, rows))

    with ThreadPoolExecutor(_workers()) as pool:
        results = pool.map(check, range(len(index.shards)))
        for problems in tqdm(results, desc="verify", unit=" shards", total=len(index.shards), disable=None):
            yield from problems


def _check_idx(path: Path, columns: Columns, rows: np.ndarray) -> Iterator[str]:
    """The .idx against the columns: they state the place of every image, and where its facts must follow."""
    if not path.is_file():
        return  # reported with the files
    lines = path.read_text(errors="replace").splitlines()
    if not lines or lines[0] != f"{INDEX_VERSION} {len(rows)}" or len(lines) != len(rows) + 1:
        got = f"{lines[0][:40]!r} and {len(lines) - 1} lines" if lines else "an empty file"
        yield f"{path.name}: expected '{INDEX_VERSION} {len(rows)}' and {len(rows)} lines, got {got}; copy it again"
        return
    for row, line in zip(rows.tolist(), lines[1:], strict=True):
        key, offset, size = row_key(columns, row), int(columns["offset"][row]), int(columns["size"][row])
        words = line.split(" ")
        expected = [str(offset), str(size), f"{key}.{words[0]}", "json", str(offset + padded(size) + BLOCK)]
        if words[1:6] != expected or words[7:] != [f"{key}.json"]:
            yield f"{path.name}: {key}: the line does not agree with the columns: {line[:160]!r}"


def _check_tar(path: Path, columns: Columns, rows: np.ndarray) -> Iterator[str]:
    """Walk the members: an image and its facts for every row, in order, where the columns say, and nothing else."""
    with path.open("rb") as file:
        members: list[tarfile.TarInfo] = []
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                members.extend(tar)
        except (tarfile.TarError, OSError, ValueError) as error:
            yield f"{path.name}: cut or damaged after {len(members)} members ({error})"
        bad = [member.name for member in members if not _is_safe(member)]
        if bad:
            yield f"{path.name}: {bad[0][:100]!r}: expected a plain file without folders or '..'; do not unpack it"
            return
        samples = []
        for place, row in enumerate(rows.tolist()):
            pair = members[2 * place : 2 * place + 2]
            key = row_key(columns, row)
            if len(pair) < 2 or pair[0].name.partition(".")[0] != key or pair[1].name != f"{key}.json":
                names = " and ".join(member.name for member in pair) or "the end"
                unread = len(rows) - place
                yield f"{path.name}: {key}: expected this image and its facts, got {names}; {unread} images unread"
                return
            samples.append(tuple(Component(m.name.partition(".")[2], m.offset_data, m.size, m.name) for m in pair))
            for problem in _check_sample(file, pair, columns, row):
                yield f"{path.name}: {key}: {problem}"
    if len(members) > 2 * len(rows):
        yield f"{path.name}: {members[2 * len(rows)].name}: a member that the columns do not know"
    idx = path.with_suffix(".idx")
    if idx.is_file() and idx.read_text(errors="replace") != index_text(samples):
        yield f"{idx.name}: does not agree with the members of {path.name}; remake it with wds2idx"


def _check_sample(file: BinaryIO, pair: list[tarfile.TarInfo], columns: Columns, row: int) -> Iterator[str]:
    image, facts = pair
    offset, size = int(columns["offset"][row]), int(columns["size"][row])
    if (image.offset_data, image.size) != (offset, size):
        yield f"the columns state {size} bytes at {offset}, the tar has {image.size} at {image.offset_data}"
        return
    file.seek(offset)
    problem = decode_problem(file.read(size))
    if problem:
        yield f"does not decode: {problem}"
    file.seek(facts.offset_data)
    problem = _facts_problem(file.read(facts.size) if facts.size <= _FACTS_LIMIT else b"", columns, row)
    if problem:
        yield problem


def _facts_problem(data: bytes, columns: Columns, row: int) -> str | None:
    """What is wrong with the .json of a sample: it repeats the columns and adds the source path."""
    try:
        facts = json.loads(data)
    except ValueError as error:
        return f"its facts are no JSON ({error})"
    expected: dict[str, Any] = {name: int(columns[name][row]) for name in ("pid", "camid")}
    expected |= {
        "modality": _MODALITIES[int(columns["modality"][row])].value,
        "split": _SPLITS[int(columns["split"][row])],
    }
    if not isinstance(facts, dict) or set(facts) != {*expected, "source"}:
        return f"its facts have other fields than {', '.join(expected)}, source"
    for name, value in expected.items():
        if facts[name] != value:
            return f"its facts state {name} {facts[name]!r}, the columns {value!r}"
    source = facts["source"]
    if not isinstance(source, str) or PurePosixPath(source).is_absolute() or ".." in PurePosixPath(source).parts:
        return f"its source {source!r} is not a path inside the raw folder"
    return None


def _is_safe(member: tarfile.TarInfo) -> bool:
    return member.isreg() and "/" not in member.name and "\\" not in member.name and member.name.partition(".")[0] != ""


def _column(name: str) -> str:
    return f"{COLUMN_FOLDER}/{name}.npy"


def _workers() -> int:
    return len(os.sched_getaffinity(0))
