"""Shows what a shard set contains: tables for the terminal, and a contact sheet as one self-contained HTML file."""

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from shards.verify import verify
from tacaf.files import reason_of, shown, write_whole
from tacaf.images import ImageError, decode, is_wide, open_image
from tacaf.pages import render
from tacaf.shard_columns import read_column, row_key
from tacaf.shard_set import IndexFile, read_index
from tacaf.vocabulary import COLUMNS, InputError, Modality

TEMPLATE = Path(__file__).with_name("contact_sheet.html")
SAMPLED = 64  # images whose size is read
THUMBNAIL_HEIGHT = 144  # pixels
THUMBNAILS = 6  # per identity and modality

Table = list[list[str]]  # the first row names the columns


@dataclass(frozen=True)
class ShardSet:
    """An opened set: its index and its columns."""

    folder: Path
    index: IndexFile
    columns: dict[str, np.ndarray]

    def key(self, row: int) -> str:
        return row_key(self.columns, row)

    def image(self, row: int) -> bytes:
        """The bytes of an image file. Raises InputError if the shard is missing or truncated."""
        path = self.folder / self.index.shards[int(self.columns["shard"][row])].name
        size = int(self.columns["size"][row])
        try:
            with path.open("rb") as file:
                file.seek(int(self.columns["offset"][row]))
                data = file.read(size)
        except OSError as error:
            raise InputError(
                f"the shard {shown(path)} cannot be read: {reason_of(error)}; run verify, and copy the shard again"
            ) from None
        if len(data) != size:
            raise InputError(f"{shown(path)} is truncated before {self.key(row)}; run verify, and copy the shard again")
        return data


@dataclass(frozen=True)
class Picture:
    """One thumbnail of the sheet; `data` is a JPEG in base64."""

    key: str
    data: str
    width: int
    height: int
    caption: str


def open_set(folder: Path) -> ShardSet:
    """Open the set in `folder`. Raises InputError if it is not a shard set or a quick verification finds a problem."""
    folder = Path(folder)
    problems = verify(folder, quick=True)
    if problems:
        raise InputError(
            f"the shard set in {shown(folder)} has {_count(problems, 'problem')}, the first is: {problems[0]}"
        )
    index = read_index(folder)
    return ShardSet(folder, index, {name: read_column(folder, name, index) for name in COLUMNS})


def summary_text(shard_set: ShardSet) -> str:
    """The headline and the tables, as text for the terminal."""
    return "\n\n".join([_headline(shard_set), *(_align(table) for table in tables(shard_set).values())])


def tables(shard_set: ShardSet) -> dict[str, Table]:
    """The tables by title: splits, cameras, image sizes, ranges of grey values if there are any, shards."""
    return {
        "Splits": [
            ["split", "modality", "identities", "images", "images per identity (min / median / max)"],
            *_split_rows(shard_set),
        ],
        "Cameras": [["camera", "location", "modality", "identities", "images"], *_camera_rows(shard_set)],
        "Image sizes": [
            [f"of {min(SAMPLED, shard_set.index.images)} sampled images", "min", "median", "max"],
            *_size_rows(shard_set),
        ],
        **_range_table(shard_set),
        "Shards": [["shard", "images", "MiB"], *_shard_rows(shard_set)],
    }


def write_contact_sheet(shard_set: ShardSet, path: Path, identities: int = 12) -> None:
    """Write an HTML file with the tables and, for up to `identities` people, visible and infrared images.

    Raises InputError if the file cannot be written or an image cannot be decoded.
    """
    if identities < 1:
        raise InputError(f"expected --identities of at least 1, got {identities}")
    people = [
        {"pid": pid, "name": _name_of(shard_set, pid), "splits": _splits_of(shard_set, pid)}
        | {"rows": {str(modality): _pictures(shard_set, pid, modality) for modality in Modality}}
        for pid in _chosen(shard_set, identities)
    ]
    text = render(
        TEMPLATE,
        name=shard_set.index.name,
        headline=_headline(shard_set),
        tables=tables(shard_set),
        people=people,
        all_identities=len(np.unique(shard_set.columns["pid"])),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {shown(path)}: {reason_of(error)}; choose another --html") from None
    write_whole(path, text)


def _count(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def _headline(shard_set: ShardSet) -> str:
    index = shard_set.index
    identities = len(np.unique(shard_set.columns["pid"]))
    mib = sum(shard.bytes for shard in index.shards) / 2**20
    shards = f"{_count(index.shards, 'shard')}, {mib:.1f} MiB"
    text = f"{index.name}: {index.images} images of {identities} identities in {shards}"
    text += f" ({shown(index.source)})"
    text += f"; {index.left_out_count} of its images left out" if index.left_out_count else ""
    removed = index.removed
    return text + (f"; {removed.images} images of {_count(removed.pids, 'person')} removed" if removed else "")


def _split_rows(shard_set: ShardSet) -> Iterator[list[str]]:
    pids, modalities = shard_set.columns["pid"], shard_set.columns["modality"]
    for split, members in shard_set.index.splits.items():
        inside = np.isin(pids, members)
        for modality in Modality:
            chosen = pids[inside & (modalities == modality.code)]
            per_pid = np.unique(chosen, return_counts=True)[1]
            yield [split, modality, str(len(per_pid)), str(len(chosen)), " / ".join(_spread(per_pid))]


def _camera_rows(shard_set: ShardSet) -> Iterator[list[str]]:
    columns, locations = shard_set.columns, shard_set.index.locations or {}
    for camid in np.unique(columns["camid"]).tolist():
        for modality in Modality:
            chosen = columns["pid"][(columns["camid"] == camid) & (columns["modality"] == modality.code)]
            if len(chosen):
                place = str(locations.get(camid, "-"))
                yield [str(camid), place, modality, str(len(np.unique(chosen))), str(len(chosen))]


def _size_rows(shard_set: ShardSet) -> Iterator[list[str]]:
    rows = _spaced(range(shard_set.index.images), SAMPLED)
    sizes = np.array([_look(shard_set, row)[0] for row in rows])
    for name, values in (("width", sizes[:, 0]), ("height", sizes[:, 1]), ("bytes", shard_set.columns["size"][rows])):
        yield [name, *_spread(values)]


def _range_table(shard_set: ShardSet) -> dict[str, Table]:
    """Which grey values become black and white, for the modalities that have images of more than 8 bits."""
    found = {modality: scale.describe() for modality, scale in shard_set.index.scales.items()}
    for row in _spaced(range(shard_set.index.images), SAMPLED):
        if (modality := _modality(shard_set, row)) not in found and _look(shard_set, row)[1]:
            found[modality] = "0 to 65535 (packed before ranges were measured: pack the set again)"
    rows = [[str(modality), text] for modality, text in found.items()]
    return {"Grey values of more than 8 bits": [["modality", "black to white"], *rows]} if rows else {}


def _shard_rows(shard_set: ShardSet) -> Iterator[list[str]]:
    for shard in shard_set.index.shards:
        yield [shard.name, str(shard.images), f"{shard.bytes / 2**20:.1f}"]


def _look(shard_set: ShardSet, row: int) -> tuple[tuple[int, int], bool]:
    """An image's width and height, and whether it is grey of more than 8 bits."""
    try:
        with open_image(shard_set.image(row)) as image:
            return image.size, is_wide(image)
    except ImageError as problem:
        raise _no_image(shard_set, row, problem) from None


def _no_image(shard_set: ShardSet, row: int, problem: ImageError) -> InputError:
    return InputError(f"{shard_set.key(row)} cannot be decoded: {problem}; run verify on the set")


def _chosen(shard_set: ShardSet, identities: int) -> list[int]:
    """The pids to show, evenly spaced over the set; only people with images of both modalities, if there are any."""
    pids, modalities = shard_set.columns["pid"], shard_set.columns["modality"]
    visible, infrared = (np.unique(pids[modalities == modality.code]) for modality in Modality)
    both = np.intersect1d(visible, infrared)
    return _spaced((both if len(both) else np.unique(pids)).tolist(), identities)


def _pictures(shard_set: ShardSet, pid: int, modality: Modality) -> list[Picture]:
    columns = shard_set.columns
    rows = np.flatnonzero((columns["pid"] == pid) & (columns["modality"] == modality.code)).tolist()
    return [_picture(shard_set, row) for row in _spaced(rows, THUMBNAILS)]


def _picture(shard_set: ShardSet, row: int) -> Picture:
    try:
        image = Image.fromarray(decode(shard_set.image(row), shard_set.index.scales.get(_modality(shard_set, row))))
    except ImageError as problem:
        raise _no_image(shard_set, row, problem) from None
    small = image.resize((max(1, image.width * THUMBNAIL_HEIGHT // image.height), THUMBNAIL_HEIGHT))
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=85)
    camid, number = (int(shard_set.columns[name][row]) for name in ("camid", "number"))
    caption = f"camera {camid}, {number}" if camid else str(number)
    return Picture(shard_set.key(row), base64.b64encode(encoded.getvalue()).decode(), *small.size, caption)


def _modality(shard_set: ShardSet, row: int) -> Modality:
    return Modality.of_code(shard_set.columns["modality"][row])


def _name_of(shard_set: ShardSet, pid: int) -> str | None:
    name = (shard_set.index.pid_names or {}).get(pid)
    return None if name is None else shown(name)


def _splits_of(shard_set: ShardSet, pid: int) -> str:
    return ", ".join(split for split, members in shard_set.index.splits.items() if pid in members)


def _spaced(items: Sequence[int], count: int) -> list[int]:
    """At most `count` items, evenly spaced, including the first and the last."""
    places = np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))
    return [items[place] for place in places.tolist()]


def _spread(values: np.ndarray) -> list[str]:
    if not len(values):
        return ["-"] * 3
    return [f"{value:g}" for value in (values.min(), np.median(values), values.max())]


def _align(table: Iterable[Sequence[str]]) -> str:
    rows = [list(row) for row in table]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
