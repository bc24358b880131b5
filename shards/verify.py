"""Checks a shard set against its own index: structure, counts and sizes, and, unless quick, every hash and sample."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from shards.tar import idx_of
from shards.verify_shard import Columns, ShardCheck, check_shard
from shards.workers import in_order, process_count
from tacaf.files import reason_of, shown
from tacaf.shard_columns import hash_problem, member_of, problems, read_column
from tacaf.shard_set import IndexFile, file_problem, read_index
from tacaf.vocabulary import COLUMN_FOLDER, COLUMNS, INDEX_FILE, InputError


def verify(folder: Path, quick: bool = False, workers: int | None = None) -> list[str]:
    """The problems of the shard set in `folder`, one line each, naming shard and sample; empty if there are none.

    `quick` leaves out the checks that read the tars: their hashes, members, facts and images. Up to `workers` processes
    check the shards (default: one per core, and only this process for a small set), which does not change the result.
    Raises InputError if `folder` is not a folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{shown(folder)} is not a folder; give the folder of a shard set")
    try:
        index = read_index(folder)
    except InputError as error:
        return [str(error)]
    processes = 1 if quick else process_count(workers, index.images)
    found = [*_check_files(folder, index), *_strangers(folder, index)]
    columns: Columns = {}
    for name in COLUMNS:
        try:
            columns[name] = read_column(folder, name, index)
            problem = hash_problem(folder / member_of(name), name, index)
            found += [f"{member_of(name)}: {problem}"] if problem else []
        except InputError as error:
            found.append(str(error))
    trusted = None  # the columns, if they agree with the index and can be compared with the tars
    if len(columns) == len(COLUMNS):
        wrong = list(problems(index, columns))
        found += wrong
        trusted = None if wrong else columns
    return [shown(problem) for problem in found + _check_shards(folder, index, trusted, quick, processes)]


def _check_files(folder: Path, index: IndexFile) -> Iterator[str]:
    """The shards and their .idx files must exist and be plain files, and the shards must have the stated sizes."""
    for shard in index.shards:
        for name, size in ((shard.name, shard.bytes), (idx_of(shard.name), None)):
            problem = file_problem(folder / name, size)
            if problem:
                yield f"{name} {problem}"


def _strangers(folder: Path, index: IndexFile) -> Iterator[str]:
    """Files in the folder and in columns/ that do not belong to the set."""
    members = {name for shard in index.shards for name in (shard.name, idx_of(shard.name))}
    top = {COLUMN_FOLDER, INDEX_FILE, *members}
    for inside, known in ((folder, top), (folder / COLUMN_FOLDER, {f"{name}.npy" for name in COLUMNS})):
        try:
            names = sorted(set(os.listdir(inside)) - known)
        except OSError as error:
            yield f"{inside.name}: {reason_of(error)}"
            continue
        for name in names:
            yield f"{(inside / name).relative_to(folder)} does not belong to the set: the index does not name it"


def _check_shards(folder: Path, index: IndexFile, columns: Columns | None, quick: bool, processes: int) -> list[str]:
    """The problems of every shard's .idx and, unless quick, of its members; then the shards whose hash is wrong."""
    checks = []
    for number, shard in enumerate(index.shards):
        rows = None if columns is None else np.flatnonzero(columns["shard"] == number)
        of_shard = None if columns is None else {name: np.asarray(values)[rows] for name, values in columns.items()}
        checks.append(ShardCheck(folder / shard.name, of_shard, quick, shard.sha256, index.scales))
    found: list[str] = []
    changed: list[str] = []
    with tqdm(total=index.images, desc="verify", unit=" images", disable=True if quick else None) as bar:
        results = in_order(check_shard, checks, processes, bar)
        for shard, (wrong, is_same) in zip(index.shards, results, strict=True):
            found += wrong
            changed += [] if is_same else [shard.name]
    end = "its sha256 is not the one in the index, so a byte has changed; copy it again"
    return found + [f"{name}: {end}" for name in changed]
