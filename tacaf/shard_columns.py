"""The columns of a shard set: memory-mapping them, and checks against the index that trainer and verifier share.

The checks make one pass over the rows, a chunk at a time, so that ten million rows take a fraction of a second.
Source: ours.
"""

import io
import os
import re
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path

import numpy as np

from tacaf.files import reason_of, sha256_of
from tacaf.shard_set import CURE, IndexFile, Tally, file_problem
from tacaf.vocabulary import COLUMN_FOLDER, COLUMNS, InputError, Modality, Split, sample_key

NO_SPLIT = 255  # the split column of an image that belongs to no single split (RegDB has ten)
MOST_HEADER_BYTES = 4096  # of a column file; numpy writes 128
CHUNK_ROWS = 2**17

Columns = Mapping[str, np.ndarray]

# The only header that a column may have: version 1.0 of numpy's format, one dimension.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>..)"
    rb"\{'descr': '(?P<dtype>[<|][a-z][0-9])', 'fortran_order': False, 'shape': \((?P<rows>[0-9]{1,18}),\), \} *\n",
    re.DOTALL,
)
_MOST = {"modality": 1, "pid": 2**62 - 1}
_LEAST = {"number": 1, "size": 1}
_SPLIT_BIT = np.zeros(256, dtype=np.uint8)  # code of a split -> its bit, 0 for unknown codes
_SPLIT_BIT[[split.code for split in Split]] = [1 << split.code for split in Split]
_SPLIT_BIT[NO_SPLIT] = 128


def member_of(name: str) -> str:
    """The path of a column's file inside its set."""
    return f"{COLUMN_FOLDER}/{name}.npy"


def read_column(folder: Path, name: str, index: IndexFile) -> np.ndarray:
    """The memory-mapped column `name` of the set in `folder`. Raises InputError if its file is wrong."""
    path, member = folder / member_of(name), member_of(name)
    if path.parent.is_symlink():
        raise InputError(
            f"{COLUMN_FOLDER} is a link, which may lead out of the set; put the folder itself in its place"
        )
    problem = file_problem(path)
    if problem:
        raise InputError(f"{member} {problem}; {CURE}")
    try:
        with path.open("rb") as file:
            return map_column(file, name, index, member)
    except OSError as error:
        raise InputError(f"cannot read {member}: {reason_of(error)}") from None


def map_column(file: BufferedReader, name: str, index: IndexFile, where: str) -> np.ndarray:
    """The column in an open file, mapped. Raises InputError if its header or length contradicts the index."""
    dtype = np.dtype(COLUMNS[name])
    found = _HEADER.match(file.read(MOST_HEADER_BYTES))
    if not found or int.from_bytes(found["length"], "little") != found.end() - 10:
        raise InputError(f"{where} does not begin with the header of a column; {CURE}")
    if (found["dtype"].decode(), int(found["rows"])) != (dtype.str, index.images):
        got = f"{int(found['rows'])} of {found['dtype'].decode()}"
        raise InputError(f"{where}: expected {index.images} entries of {dtype.str}, got {got}; {CURE}")
    size, expected = os.fstat(file.fileno()).st_size, found.end() + index.images * dtype.itemsize
    if size != expected:
        raise InputError(f"{where}: expected {expected} bytes, got {size}; {CURE}")
    return np.memmap(file, dtype, "r", found.end(), (index.images,))


def hash_problem(path: Path, name: str, index: IndexFile) -> str | None:
    """What is wrong with the content of a column's file, or None."""
    return (
        None
        if sha256_of(path) == index.columns[name].sha256
        else f"its sha256 is not the one in the index: a byte has changed; {CURE}"
    )


def column_bytes(values: np.ndarray) -> bytes:
    """The content of a column file."""
    content = io.BytesIO()
    np.save(content, values, allow_pickle=False)
    return content.getvalue()


def row_key(columns: Columns, row: int) -> str:
    """The key of a row's sample."""
    modality = Modality.of_code(columns["modality"][row])
    return sample_key(modality, *(int(columns[name][row]) for name in ("pid", "camid", "number")))


def tally(pids: np.ndarray, modalities: np.ndarray, splits: dict[str, list[int]]) -> dict[str, dict[Modality, Tally]]:
    """The `counts` of an index, computed from the columns pid (ascending) and modality and the named pid lists."""
    starts = _starts(pids)
    people = pids[starts]
    infrared = np.add.reduceat(modalities, starts, dtype=np.int64) if len(starts) else starts
    images = {Modality.VISIBLE: np.diff(starts, append=len(pids)) - infrared, Modality.INFRARED: infrared}
    counts: dict[str, dict[Modality, Tally]] = {}
    for name, members in splits.items():
        inside = _found(np.asarray(members, dtype=np.int64), people)
        own = {modality: found[inside] for modality, found in images.items()}
        counts[name] = {m: Tally(images=int(n.sum()), pids=int(np.count_nonzero(n))) for m, n in own.items()}
    return counts


def problems(index: IndexFile, columns: Columns) -> Iterator[str]:
    """Yield one line for each kind of contradiction between the columns and the index or another column.

    Checks codes, order, positions inside the shards, rows of each shard, and the splits and counts in the index. Every
    column must have `index.images` entries of its type.
    """
    seen: set[str] = set()
    sizes = np.array([shard.bytes for shard in index.shards], dtype=np.int64)
    for start in range(0, index.images, CHUNK_ROWS):
        first = max(0, start - 1)  # with the row before, so that no pair of neighbours is missed
        part = {name: np.asarray(values[first : start + CHUNK_ROWS]) for name, values in columns.items()}
        for kind, row, text in _chunk_problems(part, sizes):
            if kind not in seen:
                seen.add(kind)
                yield f"{kind}: row {first + row}: {text}"
    if not seen:
        yield from _shard_problems(index, columns)
        yield from _list_problems(index, columns)


def _chunk_problems(part: Columns, sizes: np.ndarray) -> Iterator[tuple[str, int, str]]:
    """The first wrong row of each kind: (what is wrong, row of the chunk, why)."""
    known = True
    for name, values in part.items():
        least, most = (
            _LEAST.get(name, 0),
            _MOST.get(name, len(sizes) - 1 if name == "shard" else np.iinfo(values.dtype).max),
        )
        if values.min() < least or values.max() > most:
            known, row = False, int(np.argmax((values < least) | (values > most)))
            yield member_of(name), row, f"expected {least} to {most}, got {values[row]}"
    bits = _SPLIT_BIT[part["split"]]
    if not bits.all():
        row = int(np.argmin(bits))
        yield member_of("split"), row, f"expected the code of a split or {NO_SPLIT}, got {part['split'][row]}"
    if not known:
        return
    shard, offset, size, pid = (part[name] for name in ("shard", "offset", "size", "pid"))
    room = sizes[shard]
    if (outside := (offset > room) | (size > room - offset)).any():
        row = int(np.argmax(outside))
        yield "columns", row, f"{row_key(part, row)}: {size[row]} bytes at {offset[row]} are not inside the shard"
        return
    person = pid * 2 + part["modality"]
    image = part["camid"].astype(np.int64) << 32 | part["number"]
    same, next_shard = pid[1:] == pid[:-1], shard[1:] != shard[:-1]
    ascending = (person[1:] > person[:-1]) | ((person[1:] == person[:-1]) & (image[1:] > image[:-1]))
    for wrong, why in (
        (~ascending, "rows are not sorted by pid, modality, camid, number, each once"),
        ((shard[1:] < shard[:-1]) | (next_shard & same), "the shards are not in order, or one cuts an identity"),
        (~next_shard & (offset[1:] < offset[:-1] + size[:-1]), "its bytes in the shard overlap the image before"),
    ):
        if wrong.any():
            row = 1 + int(np.argmax(wrong))
            yield "columns", row, f"{row_key(part, row)}: {why}"
            return


def _shard_problems(index: IndexFile, columns: Columns) -> Iterator[str]:
    bounds = np.searchsorted(columns["shard"], np.arange(len(index.shards) + 1, dtype=np.int32))
    for shard, rows in zip(index.shards, np.diff(bounds).tolist(), strict=True):
        if rows != shard.images:
            yield f"{shard.name}: the index states {shard.images} images, the columns have {rows}"


def _list_problems(index: IndexFile, columns: Columns) -> Iterator[str]:
    """Contradictions in what the index states about people, splits and counts."""
    found = tally(columns["pid"], columns["modality"], index.splits)
    for split, counts in found.items():
        for modality, got in counts.items():
            if got != (stated := index.counts[split].get(modality)):
                yield f"index.json: counts of {split}, {modality}: stated {stated or 'none'}, recounted {got}"
    starts = _starts(columns["pid"])
    people = np.asarray(columns["pid"][starts])
    back = _found(np.array(index.removed.pids if index.removed else [], dtype=np.int64), people)
    if len(back):
        yield f"index.json: pid {people[back[0]]} is stated as removed, but has images; remove it again"
    bits = np.bitwise_or.reduceat(_SPLIT_BIT[columns["split"]], starts)
    for split, pids in index.splits.items():
        members = np.array(pids, dtype=np.int64)
        if len(_found(members, people)) < len(members):
            yield f"index.json: split {split} names pid {np.setdiff1d(members, people)[0]}, which has no image"
        if split in set(Split):
            own = people[(bits & (1 << Split(split).code)) > 0]
            if not np.array_equal(own, members):
                odd = np.setxor1d(own, members)[0]
                yield f"index.json: split {split} and the column split differ at pid {odd}"


def _found(members: np.ndarray, people: np.ndarray) -> np.ndarray:
    """The positions in `people` of the `members` that are there; both are ascending."""
    places = np.searchsorted(people, members)
    return places[people[np.minimum(places, len(people) - 1)] == members] if len(people) else places[:0]


def _starts(pids: np.ndarray) -> np.ndarray:
    """The first row of every pid, from a column of ascending pids."""
    return np.flatnonzero(np.append(True, pids[1:] != pids[:-1])) if len(pids) else np.empty(0, dtype=np.int64)
