"""Checks one shard, in any process: its .idx, members, facts and images against the columns, and its hash."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from shards.tar import BLOCK, INDEX_VERSION, Component, index_text, padded
from shards.workers import Progress
from tacaf.documents import load_json
from tacaf.files import read_bytes, reason_of, sha256_of
from tacaf.images import GreyScale, decode_problem
from tacaf.shard_columns import NO_SPLIT, row_key
from tacaf.shard_set import file_problem
from tacaf.vocabulary import InputError, Modality, Split

SPLITS = {split.code: split.value for split in Split} | {NO_SPLIT: None}
_MOST_FACTS = 65_536  # bytes; the facts of a sample take about a hundred
_MOST_LINE = 1024  # bytes; a sample's line in an .idx takes about a hundred

Columns = dict[str, np.ndarray]
Scales = dict[Modality, GreyScale]


@dataclass(frozen=True)
class ShardCheck:
    """A shard to check. `columns` contains only its rows, in order, or is None if the set's columns are wrong."""

    path: Path
    columns: Columns | None
    quick: bool  # leave out the checks that read the tar
    sha256: str
    scales: Scales  # the grey ranges of the set


def check_shard(check: ShardCheck, progress: Progress) -> tuple[list[str], bool]:
    """The problems of the shard, one line each, and whether its hash is right (true as well if it was not checked)."""
    path, columns = check.path, check.columns
    problems = [] if columns is None else list(_check_idx(path.with_suffix(".idx"), columns))
    if check.quick or file_problem(path):
        return problems, True
    try:
        is_same = sha256_of(path) == check.sha256
    except OSError as error:
        return [*problems, f"{path.name}: {reason_of(error)}"], True
    if columns is not None:
        problems += _check_tar(path, columns, check.scales, progress)
    return problems, is_same


def _check_idx(path: Path, columns: Columns) -> Iterator[str]:
    """Compare the .idx with the columns, which determine the positions of every image and of its facts."""
    if file_problem(path):
        return  # `verify` reports it together with the other files
    rows = len(columns["pid"])
    try:
        lines = read_bytes(path, _MOST_LINE * (rows + 1)).decode("utf-8", "replace").split("\n")
    except InputError as error:
        yield f"{path.name}: {error}"
        return
    if lines[0] != f"{INDEX_VERSION} {rows}" or len(lines) != rows + 2 or lines[-1]:
        got = f"{lines[0][:40]!r} and {len(lines) - 2} lines"
        yield f"{path.name}: expected '{INDEX_VERSION} {rows}' and {rows} lines, got {got}; copy it again"
        return
    for row, line in enumerate(lines[1:-1]):
        key, offset, size = row_key(columns, row), int(columns["offset"][row]), int(columns["size"][row])
        words = line.split(" ")
        expected = [str(offset), str(size), f"{key}.{words[0]}", "json", str(offset + padded(size) + BLOCK)]
        if words[1:6] != expected or words[7:] != [f"{key}.json"]:
            yield f"{path.name}: {key}: the line does not agree with the columns: {line[:160]!r}"


def _check_tar(path: Path, columns: Columns, scales: Scales, progress: Progress) -> Iterator[str]:
    """The members must be an image and its facts for every row, in order and at the columns' offsets, and no others."""
    rows = len(columns["pid"])
    with path.open("rb") as file:
        members: list[tarfile.TarInfo] = []
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                members.extend(tar)
        except Exception as error:  # tarfile raises errors of many kinds on damaged headers
            yield f"{path.name}: truncated or damaged after {len(members)} members ({error})"
        bad = [member.name for member in members if not _is_safe(member)]
        if bad:
            yield f"{path.name}: {bad[0][:100]!r}: expected a plain file without folders or '..'; do not unpack it"
            return
        samples = []
        for row in range(rows):
            pair = members[2 * row : 2 * row + 2]
            key = row_key(columns, row)
            if len(pair) < 2 or pair[0].name.partition(".")[0] != key or pair[1].name != f"{key}.json":
                names = " and ".join(member.name for member in pair) or "the end"
                yield f"{path.name}: {key}: expected this image and its facts, got {names}; {rows - row} images unread"
                return
            samples.append(tuple(Component(m.name.partition(".")[2], m.offset_data, m.size, m.name) for m in pair))
            for problem in _check_sample(file, pair, columns, row, scales):
                yield f"{path.name}: {key}: {problem}"
            progress(1)
    if len(members) > 2 * rows:
        yield f"{path.name}: {members[2 * rows].name}: the columns have no such member"
    idx = path.with_suffix(".idx")
    text = index_text(samples).encode()
    if not file_problem(idx) and (idx.stat().st_size != len(text) or read_bytes(idx, len(text)) != text):
        yield f"{idx.name}: does not agree with the members of {path.name}; remake it with wds2idx"


def _check_sample(
    file: BinaryIO, pair: list[tarfile.TarInfo], columns: Columns, row: int, scales: Scales
) -> Iterator[str]:
    image, facts = pair
    offset, size = int(columns["offset"][row]), int(columns["size"][row])
    if (image.offset_data, image.size) != (offset, size):
        yield f"the columns state {size} bytes at {offset}, the tar has {image.size} at {image.offset_data}"
        return
    file.seek(offset)
    scale = scales.get(Modality.of_code(columns["modality"][row]))
    problem = decode_problem(file.read(size), scale)
    if problem:
        yield f"does not decode: {problem}"
    file.seek(facts.offset_data)
    problem = _facts_problem(file.read(facts.size) if facts.size <= _MOST_FACTS else b"", columns, row)
    if problem:
        yield problem


def _facts_problem(data: bytes, columns: Columns, row: int) -> str | None:
    """What is wrong with the .json of a sample, or None. It must repeat the columns and add the source path."""
    try:
        facts = load_json(data, "its facts", _MOST_FACTS)
    except InputError as error:
        return str(error)
    expected: dict[str, Any] = {name: int(columns[name][row]) for name in ("pid", "camid")}
    expected |= {
        "modality": Modality.of_code(columns["modality"][row]).value,
        "split": SPLITS[int(columns["split"][row])],
    }
    if not isinstance(facts, dict) or set(facts) != {*expected, "source"}:
        return f"its facts have other fields than {', '.join(expected)}, source"
    for name, value in expected.items():
        if facts[name] != value or type(facts[name]) is not type(value):
            return f"its facts state {name} {facts[name]!r}, the columns {value!r}"
    source = facts["source"]
    if not isinstance(source, str) or source.startswith("/") or ".." in source.split("/"):
        return f"its source {source!r} is not a path inside the raw folder"
    return None


def _is_safe(member: tarfile.TarInfo) -> bool:
    name = member.name
    return member.isreg() and name.isprintable() and "/" not in name and "\\" not in name and name[:1] != "."
