"""Removes people from a shard set: a set without them is built beside it and replaces it in one step."""

import re
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.output import Workplace, link, new_set, sync, write_text
from shards.tar import Component, add_member, index_text
from shards.verify import verify
from shards.writer import write_column
from tacaf.files import sha256_of, shown
from tacaf.shard_columns import read_column, row_key, tally
from tacaf.shard_set import IndexFile, Removed, ShardFacts, Tally, read_index
from tacaf.vocabulary import COLUMNS, INDEX_FILE, InputError, Modality

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Removal:
    """What was removed from a set."""

    folder: Path
    pids: list[int]
    images: int
    rewritten: int  # number of shards
    index: IndexFile

    def summary(self) -> str:
        pids = ", ".join(map(str, self.pids[:5])) + (", ..." if len(self.pids) > 5 else "")
        return (
            f"{self.folder}: removed pid {pids}; images removed: {self.images}, left: {self.index.images}; "
            f"shards rewritten: {self.rewritten} of {len(self.index.shards)}"
        )


def remove(folder: Path, people: Sequence[str]) -> Removal:
    """Remove `people`, pids or names if the set has names, from the shard set in `folder`.

    Raises InputError, and leaves the set unchanged, if someone is not in the set, the set has a problem, or a split
    would lose its last images of one modality. After a kill, `folder` is the old set or the new one. An interrupted
    packing to the same folder loses its finished shards, because they may show the same people.
    """
    folder = Path(folder).resolve()
    if not folder.is_dir() and not Workplace(folder).old.is_dir():
        raise InputError(f"{shown(folder)} is not a folder; give the folder of a shard set")
    with new_set(folder, overwrite=True) as place:
        index, columns = _open(folder)
        pids = chosen_pids(people, index, set(columns["pid"].tolist()))
        stays = ~np.isin(columns["pid"], pids)
        splits = {split: sorted(set(members).difference(pids)) for split, members in index.splits.items()}
        counts = tally(columns["pid"][stays], columns["modality"][stays], splits)
        _check_enough(index, counts, columns["modality"][stays], pids)
        shards, kept, rewritten = _write_shards(folder, place.set, index, columns, stays)
        images, before = int((~stays).sum()), index.removed or Removed(pids=[], images=0)
        names = index.pid_names
        changed = index.model_copy(
            update={
                "images": index.images - images,
                "counts": counts,
                "splits": splits,
                "pid_names": names and {pid: name for pid, name in names.items() if pid not in pids},
                "shards": shards,
                "columns": {name: write_column(place.set, name, values) for name, values in kept.items()},
                "removed": Removed(pids=sorted({*before.pids, *pids}), images=before.images + images),
            }
        )
        write_text(place.set / INDEX_FILE, changed.to_json())
    return Removal(folder, pids, images, rewritten, changed)


def chosen_pids(people: Sequence[str], index: IndexFile, present: set[int]) -> list[int]:
    """The pids that `people` mean, ascending. Raises InputError if a word means no identity, or two."""
    return sorted({_chosen(word, index, present) for word in people})


def _chosen(word: str, index: IndexFile, present: set[int]) -> int:
    found = re.fullmatch("(?:(pid|name)=)?(.+)", word, flags=re.DOTALL)
    kind, text = found.groups() if found else (None, word)
    meant = {pid for pid, name in (index.pid_names or {}).items() if name == text and kind != "pid"}
    if kind != "name" and re.fullmatch("[0-9]{1,18}", text):
        meant |= {int(text)} & present
    if len(meant) == 1:
        return min(meant)
    if meant:
        raise InputError(
            f"expected --pid to name one identity, but {text} may be pid {' or '.join(map(str, sorted(meant)))}; write "
            f"pid={text} or name={text}"
        )
    gone = index.removed is not None and text in map(str, index.removed.pids)
    raise InputError(
        f"expected --pid to name identities of the set, got {text}, which "
        + ("was already removed" if gone else "is not in the set; its index.json lists the identities")
    )


def _open(folder: Path) -> tuple[IndexFile, Columns]:
    problems = verify(folder, quick=True)
    if problems:
        raise InputError(
            f"the shard set in {shown(folder)} has {len(problems)} problem{'s' * (len(problems) != 1)}, the first is: "
            f"{problems[0]}; pack it again before you remove people"
        )
    index = read_index(folder)
    return index, {name: np.array(read_column(folder, name, index)) for name in COLUMNS}


def _check_enough(
    index: IndexFile, counts: Mapping[str, Mapping[Modality, Tally]], modalities: np.ndarray, pids: list[int]
) -> None:
    """Raises InputError if the set, or a split that had images of a modality, would lose all of them."""
    listed = ", ".join(map(str, pids[:5]))
    for modality in Modality:
        lost = [
            f"split {split}"
            for split, before in index.counts.items()
            if before[modality].images and not counts[split][modality].images
        ]
        if lost or not (modalities == modality.code).any():
            where = lost[0] if lost else "the set"
            raise InputError(
                f"removing pid {listed} would leave no {modality} images in {where}; keep one of these identities, or "
                "delete the set and pack it again without them"
            )


def _write_shards(
    folder: Path, target: Path, index: IndexFile, columns: Columns, stays: np.ndarray
) -> tuple[list[ShardFacts], Columns, int]:
    """The shards and columns of the remaining images, and the number of shards that were rewritten."""
    shards: list[ShardFacts] = []
    kept = {name: values[stays] for name, values in columns.items()}
    row_of = np.cumsum(stays) - 1  # row before -> row after
    rewritten = 0
    for number, facts in enumerate(index.shards):
        rows = np.flatnonzero(columns["shard"] == number)
        staying = rows[stays[rows]]
        if not len(staying):
            continue
        name = f"{index.name}-{len(shards):06d}.tar"
        kept["shard"][row_of[staying]] = len(shards)
        if len(staying) == len(rows):
            for suffix in (".tar", ".idx"):
                _link_or_copy((folder / facts.name).with_suffix(suffix), (target / name).with_suffix(suffix))
            shards.append(facts.model_copy(update={"name": name}))
            continue
        images = _rewrite(folder / facts.name, target / name, facts, [row_key(columns, row) for row in staying])
        kept["offset"][row_of[staying]] = [image.offset for image in images]
        rewritten += 1
        tar = target / name
        shards.append(ShardFacts(name=name, bytes=tar.stat().st_size, sha256=sha256_of(tar), images=len(staying)))
    return shards, kept, rewritten


def _link_or_copy(source: Path, target: Path) -> None:
    """Put an unchanged file into the new set: as a hard link, or as a copy on a file system without hard links."""
    if not link(source, target):
        shutil.copyfile(source, target)
        with target.open("rb+") as file:
            sync(file)


def _rewrite(source: Path, target: Path, facts: ShardFacts, keys: list[str]) -> list[Component]:
    """Copy the samples of `keys`, in the order of `source`, to `target`. Returns the positions of their images."""
    if sha256_of(source) != facts.sha256:  # the hash of the rewritten shard would hide the damage
        raise InputError(
            f"{source}: its sha256 is not the one in {INDEX_FILE}, so a byte has changed; copy it again first"
        )
    wanted = set(keys)
    samples: dict[str, list[Component]] = {}
    with target.open("wb") as file:
        with (
            tarfile.open(source, "r:") as old,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as new,
        ):
            for member in old:
                key, _, extension = member.name.partition(".")
                data = old.extractfile(member)
                if key in wanted and data is not None:
                    samples.setdefault(key, []).append(add_member(new, key, extension, data.read()))
        sync(file)
    if list(samples) != keys or any(len(sample) != 2 for sample in samples.values()):
        raise InputError(f"{source}: expected the samples that the columns name, got others; run verify on the set")
    write_text(target.with_suffix(".idx"), index_text(list(samples.values())))
    return [image for image, _ in samples.values()]
