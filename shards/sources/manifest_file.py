"""Reads and checks the list of a data set's images: CSV with a header, or one JSON object per line.

Columns: path, pid, modality; optionally camid and split. Other columns are ignored.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from shards.sources.layout import MOST_LIST_BYTES
from shards.sources.record import Omission
from tacaf.documents import load_json
from tacaf.files import read_bytes, shown
from tacaf.images import SUFFIXES
from tacaf.vocabulary import InputError, Modality, Split

NEEDED, OPTIONAL = ("path", "pid", "modality"), ("camid", "split")
MODALITIES = {
    "visible": Modality.VISIBLE,
    "rgb": Modality.VISIBLE,
    "infrared": Modality.INFRARED,
    "ir": Modality.INFRARED,
    "nir": Modality.INFRARED,
    "thermal": Modality.INFRARED,
}
MOST_LINE_BYTES = 2**16
MOST_PID_LETTERS = 256
_CONTROL = "[\x00-\x1f\x7f\ud800-\udfff]"  # control characters and surrogates

Fields = dict[str, str]


@dataclass(frozen=True)
class Row:
    """One line of the list. `pid` is as the list writes it, a number or a name."""

    place: str  # file and line, for messages
    path: str  # relative to the root, `/` between folders
    pid: str
    modality: Modality
    camid: int
    split: Split | None


def read(listed: Path, root: Path, jsonl: bool) -> tuple[list[Row], list[Omission]]:
    """The rows of the list, and the hidden files in it, which do not count as images.

    Raises InputError, naming file and line, if a row is invalid or contradicts another.
    """
    rows: list[Row] = []
    hidden: list[Omission] = []
    place_of: dict[str, str] = {}
    split_of: dict[str, Row] = {}
    top = root.resolve()
    for place, fields in _json_lines(listed) if jsonl else _csv_lines(listed):
        row = _row(place, fields)
        if PurePosixPath(row.path).name.startswith("."):
            hidden.append(Omission(row.path, "a hidden file", images=0))
            continue
        _check_file(row, root, top)
        if row.path in place_of:
            raise InputError(
                f"{place}: expected every path once, got {row.path} as in {place_of[row.path]}; remove one"
            )
        first = split_of.setdefault(row.pid, row)
        if first.split is not row.split:
            raise InputError(
                f"{place}: expected pid {row.pid} in one split, got {row.split or 'none'}, and {first.split or 'none'} "
                f"in {first.place}; correct the list"
            )
        if (row.split is None) != (rows[0].split is None if rows else row.split is None):
            raise InputError(f"{place}: expected a split in every line or in none; correct the list")
        place_of[row.path] = place
        rows.append(row)
    if not rows:
        raise InputError(
            f"{shown(listed)}: expected lines with {', '.join(NEEDED)}, got none; write one line per image"
        )
    return rows, hidden


def _text(listed: Path) -> str:
    try:
        data = read_bytes(listed, MOST_LIST_BYTES)
    except InputError as error:
        raise InputError(f"expected a list of images, got: {error}; check --csv or --jsonl") from None
    try:
        return data.decode("utf-8-sig")  # some spreadsheets write a byte order mark first
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{shown(listed)}:{line}: expected UTF-8 text, got another encoding; save the list as UTF-8"
        ) from None


def _csv_lines(listed: Path) -> Iterator[tuple[str, Fields]]:
    """Yields (file:line, fields) of every line after the header."""
    reader = csv.reader(io.StringIO(_text(listed), newline=""), strict=True)
    header: list[str] = []
    try:
        for words in reader:
            place = f"{shown(listed)}:{reader.line_num}"
            if not words:
                continue
            if not header:
                header = [word.strip() for word in words]
                _check_header(place, header)
            elif len(words) != len(header):
                raise InputError(
                    f"{place}: expected {len(header)} fields as in the header, got {len(words)}; correct the line"
                )
            else:
                yield place, {name: word.strip() for name, word in zip(header, words, strict=True)}
    except csv.Error as error:
        raise InputError(f"{shown(listed)}:{reader.line_num}: expected CSV, got: {error}; correct the line") from None


def _check_header(place: str, header: list[str]) -> None:
    missing = [name for name in NEEDED if name not in header]
    if missing:
        raise InputError(
            f"{place}: expected a header with {', '.join(NEEDED)}, got no {missing[0]} in {', '.join(header)[:80]!r}; "
            "name the columns in the first line, with commas between"
        )
    twice = [name for name in (*NEEDED, *OPTIONAL) if header.count(name) > 1]
    if twice:
        raise InputError(f"{place}: expected every column once, got {twice[0]} twice; remove one")


def _json_lines(listed: Path) -> Iterator[tuple[str, Fields]]:
    """Yields (file:line, fields) of every line that is not blank; numbers become text, as in CSV."""
    for number, line in enumerate(_text(listed).split("\n"), 1):
        place = f"{shown(listed)}:{number}"
        if not line.strip():
            continue
        found = load_json(line.encode(), place, MOST_LINE_BYTES, "correct the line")
        if not isinstance(found, dict):
            raise InputError(f"{place}: expected a JSON object, got {line.strip()[:60]!r}; write one object per line")
        yield place, {name: _word(place, name, found[name]) for name in (*NEEDED, *OPTIONAL) if name in found}


def _word(place: str, name: str, value: Any) -> str:
    if value is None and name in OPTIONAL:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        return str(value)
    got = "a huge number" if isinstance(value, int) and not isinstance(value, bool) else json.dumps(value)[:60]
    raise InputError(f"{place}: expected {name} as text or a whole number, got {got}; correct the line")


def _row(place: str, fields: Fields) -> Row:
    for name in NEEDED:
        if not fields.get(name):
            raise InputError(f"{place}: expected a {name}, got none; correct the line")
        if re.search(_CONTROL, fields[name]):
            raise InputError(f"{place}: expected a {name} in plain text, got {fields[name][:80]!r}; correct the line")
    pid, modality = fields["pid"], fields["modality"].lower()
    if len(pid) > MOST_PID_LETTERS or re.fullmatch("[0-9]{19,}", pid):
        raise InputError(
            f"{place}: expected a pid of at most 18 digits or a name of at most {MOST_PID_LETTERS} letters, got"
            f" {pid[:40]!r}; correct the line"
        )
    if re.fullmatch("-[0-9]+", pid):
        raise InputError(f"{place}: expected a pid of at least 0 or a name, got {pid}; leave the line out")
    if modality not in MODALITIES:
        raise InputError(
            f"{place}: expected a modality of {', '.join(MODALITIES)}, got {modality[:40]!r}; correct the line"
        )
    camid, split = fields.get("camid") or "0", fields.get("split") or None
    if not re.fullmatch("[0-9]{1,5}", camid) or int(camid) >= 2**15:
        raise InputError(f"{place}: expected camid from 0 to 32767, got {camid[:40]!r}; number the cameras")
    if split is not None and split not in set(Split):
        raise InputError(f"{place}: expected a split of {', '.join(Split)}, got {split[:40]!r}; correct the line")
    return Row(place, _path(place, fields["path"]), pid, MODALITIES[modality], int(camid), split and Split(split))


def _path(place: str, text: str) -> str:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{place}: expected a path relative to --root without .., got {text[:200]!r}; correct it")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{place}: expected an image ({', '.join(SUFFIXES)}), got {text[:200]!r}; leave it out")
    return path.as_posix()


def _check_file(row: Row, root: Path, top: Path) -> None:
    try:
        inside = (root / row.path).resolve().is_relative_to(top)
        found = (root / row.path).is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a NUL byte, a name that is too long
        raise InputError(f"{row.place}: expected an image file, got {row.path[:200]!r} ({error}); correct it") from None
    if not inside:
        raise InputError(
            f"{row.place}: expected a file below {shown(root)}, but {shown(row.path)} is a link to elsewhere; copy it"
            " there"
        )
    if not found:
        hint = "write / between folders" if "\\" in row.path else "write the path relative to --root, or drop the line"
        raise InputError(f"{row.place}: the image {shown(root / row.path)} does not exist; {hint}")
