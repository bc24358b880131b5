"""Packs any data set from a list of its images (`manifest_file`): numbers its pids, and draws splits if it has none."""

import re
import unicodedata
from collections import defaultdict
from pathlib import Path
from typing import Unpack

from shards.sources.layout import need_folder, number_of
from shards.sources.manifest_file import Row, read
from shards.sources.record import Record
from shards.writer import Packed, PackOptions
from shards.writer import pack as write_set
from tacaf.draws import Stream, permutation
from tacaf.files import shown
from tacaf.vocabulary import InputError, Modality, Split

TEST_SHARE, VAL_SHARE, SEED = 0.3, 0.0, 0
_NUMBER = "[0-9]{1,18}"


def pack(
    root: Path,
    out: Path,
    listed: Path,
    *,
    jsonl: bool = False,
    name: str | None = None,
    test_share: float | None = None,
    val_share: float | None = None,
    seed: int | None = None,
    **options: Unpack[PackOptions],
) -> Packed:
    """Pack the images that the list names (relative to `root`) into the shard set `out`.

    `jsonl` is true for JSON lines and false for CSV. `name` is the prefix of the shards' names, by default the list's
    name. If the list has no splits, the shares `test_share` and `val_share` of the identities (default 0.3 and 0) are
    drawn for the test and for validation with `seed` (default 0), and the others are for training.
    """
    root, listed = Path(root), Path(listed)
    need_folder(root, "the images of the list")
    name = _set_name(name, listed)
    rows, left_out = read(listed, root, jsonl)
    numbers, pid_names = number_pids(rows)
    has_splits = rows[0].split is not None
    if has_splits and not test_share is val_share is seed is None:
        raise InputError(
            f"{listed}: expected either a column split or --test-share, --val-share and --seed, got both; leave one out"
        )
    tests, vals = TEST_SHARE if test_share is None else test_share, VAL_SHARE if val_share is None else val_share
    seed = SEED if seed is None else seed
    splits = _listed_splits(rows, numbers) if has_splits else draw_splits(sorted(numbers.values()), tests, vals, seed)
    drawn = f"test share {tests:g}" + (f", validation share {vals:g}" if vals else "")
    return write_set(
        _records(rows, root, numbers, splits),
        out,
        name,
        splits,
        root=root,
        source="manifest" if has_splits else f"manifest; splits drawn with seed {seed}, {drawn}",
        pid_names=pid_names,
        left_out=left_out,
        **options,
    )


def number_pids(rows: list[Row]) -> tuple[dict[str, int], dict[int, str] | None]:
    """The number of every pid of the list, and the names by number, or None if the pids are numbers themselves."""
    pids = sorted({row.pid for row in rows})
    _check_spelled_once(pids)
    if not all(re.fullmatch(_NUMBER, pid) for pid in pids):
        return {pid: number for number, pid in enumerate(pids, 1)}, dict(enumerate(pids, 1))
    return {pid: int(pid) for pid in pids}, None


def _check_spelled_once(pids: list[str]) -> None:
    """Raises InputError if two pids can be mistaken for one: `3` and `03` or `3.0`, or names that look the same."""
    seen: dict[str, str] = {}
    for pid in pids:
        visible = "".join(letter for letter in unicodedata.normalize("NFKC", pid) if letter.isprintable())
        number = number_of(visible)
        twin = seen.setdefault(" ".join(visible.split()) if number is None else number, pid)
        if twin != pid:
            why = "look alike" if number is None else "are the same number"
            raise InputError(
                f"expected every pid to be written in one way, got {shown(twin)} and {shown(pid)}, which {why}; correct"
                " the list"
            )


def draw_splits(pids: list[int], test_share: float, val_share: float, seed: int) -> dict[str, list[int]]:
    """Divide ascending pids into train, val and test: a pure function of the arguments. Source: ours.

    With a validation share of 0 there is no `val`. The test pids do not depend on this share, unless there are too few
    pids to give every split its share. Raises InputError if a number is out of range or there are too few pids for one
    in every split.
    """
    if not 0 < test_share < 1:
        raise InputError(f"expected --test-share between 0 and 1, got {test_share:g}; 0.3 is usual")
    if not 0 <= val_share < 1 - test_share:
        raise InputError(
            f"expected --val-share from 0 to less than 1 - {test_share:g} (1 minus --test-share), got {val_share:g};"
            " 0.1 is usual"
        )
    if not 0 <= seed < 2**32:
        raise InputError(f"expected --seed from 0 to {2**32 - 1}, got {seed}; change it")
    names = "train, val and test" if val_share else "train and test"
    fewest = 3 if val_share else 2
    if len(pids) < fewest:
        raise InputError(f"expected at least {fewest} identities to draw {names}, got {len(pids)}; add a column split")
    tests = min(max(1, round(len(pids) * test_share)), len(pids) - fewest + 1)
    vals = min(max(1, round(len(pids) * val_share)), len(pids) - tests - 1) if val_share else 0
    order = permutation(len(pids), Stream.SPLIT, seed, 0, 0).tolist()
    parts = {"train": order[tests + vals :], "val": order[tests : tests + vals], "test": order[:tests]}
    return {name: sorted(pids[n] for n in part) for name, part in parts.items() if part}


def _listed_splits(rows: list[Row], numbers: dict[str, int]) -> dict[str, list[int]]:
    found = {split: sorted({numbers[row.pid] for row in rows if row.split is split}) for split in Split}
    return {split.value: pids for split, pids in found.items() if pids}


def _records(rows: list[Row], root: Path, numbers: dict[str, int], splits: dict[str, list[int]]) -> list[Record]:
    """One record per row. Images of one pid, camera and modality are numbered from 1 in the order of their paths."""
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
            f"expected --name of 1 to 100 letters, digits, _ and -, got {name[:120]!r}; choose another name"
        )
    return name
