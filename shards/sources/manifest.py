"""Any new data set, from a list of its images: CSV with a header, or one JSON object a line.

Columns: path, pid, modality; optionally camid and split. Other columns are ignored.
"""

import csv
import io
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Unpack

from shards.sources.layout import MOST_LIST_BYTES, need_folder, number_of
from shards.sources.record import Omission, Record
from shards.writer import Packed, PackOptions
from shards.writer import pack as write_set
from tacaf.documents import load_json
from tacaf.draws import Stream, permutation
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
TEST_SHARE, SEED = 0.3, 0
MOST_LINE_BYTES = 2**16
MOST_PID_LETTERS = 256
_NUMBER = "[0-9]{1,18}"
_CONTROL = "[\x00-\x1f\x7f\ud800-\udfff]"  # and what is no character

Fields = dict[str, str]


@dataclass(frozen=True)
class Row:
    """One line of the list. `pid` is what the list writes, a number or a name."""

    place: str  # file and line, for messages
    path: str  # relative to the root, `/` between folders
    pid: str
    modality: Modality
    camid: int
    split: Split | None


def pack(
    root: Path,
    out: Path,
    listed: Path,
    *,
    jsonl: bool = False,
    name: str | None = None,
    test_share: float | None = None,
    seed: int | None = None,
    **options: Unpack[PackOptions],
) -> Packed:
    """Pack the images that the list names (relative to `root`) into the shard set `out`.

    `jsonl` tells the list's form; `name` is the beginning of the shards' names, by default the list's. A list without
    splits gets train and test: a share of the identities, drawn by seed (default 0.3 and 0).
    """
    root, listed = Path(root), Path(listed)
    need_folder(root, "the images of the list")
    name = _set_name(name, listed)
    rows, left_out = read(listed, root, jsonl)
    numbers, pid_names = number_pids(rows)
    has_splits = rows[0].split is not None
    if has_splits and (test_share is not None or seed is not None):
        raise InputError(
            f"{listed}: expected no column split where --test-share or --seed draw one, got both; leave one out"
        )
    share, seed = TEST_SHARE if test_share is None else test_share, SEED if seed is None else seed
    splits = _listed_splits(rows, numbers) if has_splits else draw_splits(sorted(numbers.values()), share, seed)
    return write_set(
        _records(rows, root, numbers, splits),
        out,
        name,
        splits,
        root=root,
        source="manifest" if has_splits else f"manifest; splits drawn with seed {seed}, test share {share:g}",
        pid_names=pid_names,
        left_out=left_out,
        **options,
    )


def read(listed: Path, root: Path, jsonl: bool) -> tuple[list[Row], list[Omission]]:
    """The rows of the list, checked one by one and among themselves, and the hidden files in it, which are no images.

    InputError names file and line.
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
                f"in {first.place}; mend the list"
            )
        if (row.split is None) != (rows[0].split is None if rows else row.split is None):
            raise InputError(f"{place}: expected a split in every line or in none; mend the list")
        place_of[row.path] = place
        rows.append(row)
    if not rows:
        raise InputError(f"{shown(listed)}: expected lines with {', '.join(NEEDED)}, got none; write one line an image")
    return rows, hidden


def number_pids(rows: list[Row]) -> tuple[dict[str, int], dict[int, str] | None]:
    """The number of every pid of the list, and the names by number, or None where the pids are numbers themselves."""
    pids = sorted({row.pid for row in rows})
    _check_spelled_once(pids)
    if not all(re.fullmatch(_NUMBER, pid) for pid in pids):
        return {pid: number for number, pid in enumerate(pids, 1)}, dict(enumerate(pids, 1))
    return {pid: int(pid) for pid in pids}, None


def _check_spelled_once(pids: list[str]) -> None:
    """InputError for two pids that a reader takes for one: `3` and `03` or `3.0`, or that only print alike."""
    seen: dict[str, str] = {}
    for pid in pids:
        visible = "".join(letter for letter in unicodedata.normalize("NFKC", pid) if letter.isprintable())
        number = number_of(visible)
        twin = seen.setdefault(" ".join(visible.split()) if number is None else number, pid)
        if twin != pid:
            why = "which look alike" if number is None else "one number"
            raise InputError(
                f"expected one way to write a pid, got {shown(twin)} and {shown(pid)}, {why}; mend the list"
            )


def draw_splits(pids: list[int], test_share: float, seed: int) -> dict[str, list[int]]:
    """Ascending pids, cut into train and test: a pure function of the arguments. Source: ours."""
    if not 0 < test_share < 1:
        raise InputError(f"expected --test-share between 0 and 1, got {test_share:g}; 0.3 is usual")
    if not 0 <= seed < 2**32:
        raise InputError(f"expected --seed from 0 to {2**32 - 1}, got {seed}; change it")
    if len(pids) < 2:
        raise InputError(f"expected at least 2 identities to draw train and test, got {len(pids)}; add a column split")
    tests = min(max(1, round(len(pids) * test_share)), len(pids) - 1)
    order = permutation(len(pids), Stream.SPLIT, seed, 0, 0).tolist()
    return {"train": sorted(pids[n] for n in order[tests:]), "test": sorted(pids[n] for n in order[:tests])}


def _listed_splits(rows: list[Row], numbers: dict[str, int]) -> dict[str, list[int]]:
    found = {split: sorted({numbers[row.pid] for row in rows if row.split is split}) for split in Split}
    return {split.value: pids for split, pids in found.items() if pids}


def _records(rows: list[Row], root: Path, numbers: dict[str, int], splits: dict[str, list[int]]) -> list[Record]:
    """A record a row; its number is its place among the rows of its pid, camera and modality, paths ascending."""
    split_of = {pid: Split(name) for name, pids in splits.items() for pid in pids}
    counted: dict[tuple[int, int, Modality], int] = defaultdict(int)
    records = []
    for row in sorted(rows, key=lambda row: row.path):
        pid = numbers[row.pid]
        counted[pid, row.camid, row.modality] += 1
        number = counted[pid, row.camid, row.modality]
        records.append(Record(root / row.path, pid, row.camid, row.modality, split_of[pid], number))
    return records


def _set_name(name: str | None, listed: Path) -> str:
    if name is None:
        return re.sub("[^A-Za-z0-9_-]+", "_", listed.stem)[:100]
    if not re.fullmatch("[A-Za-z0-9_-]{1,100}", name):
        raise InputError(
            f"expected --name of up to 100 letters, digits, _ and -, got {name[:120]!r}; it begins the shards' names"
        )
    return name


def _text(listed: Path) -> str:
    try:
        data = read_bytes(listed, MOST_LIST_BYTES)
    except InputError as error:
        raise InputError(f"expected a list, but: {error}; check --csv or --jsonl") from None
    try:
        return data.decode("utf-8-sig")  # some spreadsheets put a mark before the first column
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{shown(listed)}:{line}: expected UTF-8 text, got another encoding; save the list as UTF-8"
        ) from None


def _csv_lines(listed: Path) -> Iterator[tuple[str, Fields]]:
    """(file:line, fields) of every line but the header."""
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
                raise InputError(f"{place}: expected {len(header)} fields as in the header, got {len(words)}; mend it")
            else:
                yield place, {name: word.strip() for name, word in zip(header, words, strict=True)}
    except csv.Error as error:
        raise InputError(f"{shown(listed)}:{reader.line_num}: expected CSV, got: {error}; mend the line") from None


def _check_header(place: str, header: list[str]) -> None:
    missing = [name for name in NEEDED if name not in header]
    if missing:
        raise InputError(
            f"{place}: expected a header with {', '.join(NEEDED)}, got no {missing[0]} in {', '.join(header)[:80]!r}; "
            "add the column, commas between"
        )
    twice = [name for name in (*NEEDED, *OPTIONAL) if header.count(name) > 1]
    if twice:
        raise InputError(f"{place}: expected every column once, got {twice[0]} twice; remove one")


def _json_lines(listed: Path) -> Iterator[tuple[str, Fields]]:
    """(file:line, fields) of every line that is not blank; numbers become text, as in CSV."""
    for number, line in enumerate(_text(listed).split("\n"), 1):
        place = f"{shown(listed)}:{number}"
        if not line.strip():
            continue
        found = load_json(line.encode(), place, MOST_LINE_BYTES, "mend the line")
        if not isinstance(found, dict):
            raise InputError(f"{place}: expected a JSON object, got {line.strip()[:60]!r}; write one object a line")
        yield place, {name: _word(place, name, found[name]) for name in (*NEEDED, *OPTIONAL) if name in found}


def _word(place: str, name: str, value: Any) -> str:
    if value is None and name in OPTIONAL:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        return str(value)
    got = "a huge number" if isinstance(value, int) and not isinstance(value, bool) else json.dumps(value)[:60]
    raise InputError(f"{place}: expected {name} as text or a whole number, got {got}; mend the line")


def _row(place: str, fields: Fields) -> Row:
    for name in NEEDED:
        if not fields.get(name):
            raise InputError(f"{place}: expected a {name}, got none; mend the line")
        if re.search(_CONTROL, fields[name]):
            raise InputError(f"{place}: expected a {name} in plain text, got {fields[name][:80]!r}; mend the line")
    pid, modality = fields["pid"], fields["modality"].lower()
    if len(pid) > MOST_PID_LETTERS or re.fullmatch("[0-9]{19,}", pid):
        raise InputError(
            f"{place}: expected a pid of at most 18 digits or a name of at most {MOST_PID_LETTERS} letters, got"
            f" {pid[:40]!r}; mend the line"
        )
    if re.fullmatch("-[0-9]+", pid):
        raise InputError(f"{place}: expected a pid of at least 0 or a name, got {pid}; leave the line out")
    if modality not in MODALITIES:
        raise InputError(
            f"{place}: expected a modality of {', '.join(MODALITIES)}, got {modality[:40]!r}; mend the line"
        )
    camid, split = fields.get("camid") or "0", fields.get("split") or None
    if not re.fullmatch("[0-9]{1,5}", camid) or int(camid) >= 2**15:
        raise InputError(f"{place}: expected camid from 0 to 32767, got {camid[:40]!r}; number the cameras")
    if split is not None and split not in set(Split):
        raise InputError(f"{place}: expected a split of {', '.join(Split)}, got {split[:40]!r}; mend the line")
    return Row(place, _path(place, fields["path"]), pid, MODALITIES[modality], int(camid), split and Split(split))


def _path(place: str, text: str) -> str:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{place}: expected a path below --root without .., got {text[:200]!r}; write it from there")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{place}: expected an image ({', '.join(SUFFIXES)}), got {text[:200]!r}; leave it out")
    return path.as_posix()


def _check_file(row: Row, root: Path, top: Path) -> None:
    try:
        inside = (root / row.path).resolve().is_relative_to(top)
        found = (root / row.path).is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a NUL byte, a name too long
        raise InputError(f"{row.place}: expected an image file, got {row.path[:200]!r} ({error}); mend it") from None
    if not inside:
        raise InputError(
            f"{row.place}: expected a file below {shown(root)}, but {shown(row.path)} links elsewhere; copy it there"
        )
    if not found:
        hint = "write / between folders" if "\\" in row.path else "restore the file or leave the line out"
        raise InputError(f"{row.place}: expected the image {shown(root / row.path)}, found none; {hint}")
