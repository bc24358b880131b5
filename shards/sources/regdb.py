"""Packs RegDB from its own folders: {Visible,Thermal}/{id}/*.bmp, idx/{train,test}_{visible,thermal}_{1..10}.txt.

RegDB's "thermal" is called infrared from here on. It has no cameras (camid 0), and its ten splits are named pid lists.
"""

import re
from pathlib import Path
from typing import Unpack

from shards.sources.layout import (
    check_disjoint,
    check_spelling,
    image_files,
    need_folder,
    not_images,
    pid_folders,
    read_path_list,
)
from shards.sources.record import Omission, Record
from shards.writer import Packed, PackOptions
from shards.writer import pack as write_set
from tacaf.datasets import REGDB
from tacaf.vocabulary import InputError, Modality

NAME = REGDB.name
FOLDERS = {Modality.VISIBLE: "Visible", Modality.INFRARED: "Thermal"}
SPLITS = REGDB.numbered_splits
REAL_IDENTITIES = sum(REGDB.identities.values())
REAL_IMAGES = {count.modality: count.images for count in REGDB.images}


def pack(root: Path, out: Path, **options: Unpack[PackOptions]) -> Packed:
    """Pack the RegDB folders below `root` into the shard set `out`. Images in no list are left out."""
    root = Path(root)
    need_folder(root, "the RegDB folders Visible, Thermal and idx")
    check_spelling(root, [*FOLDERS.values(), "idx"])
    need_folder(root / "idx", "the split lists")
    splits, listed = read_splits(root)
    records, left_out = read(root, listed)
    warnings = []
    for modality in Modality:
        images = sum(record.modality is modality for record in records)
        if len({record.pid for record in records}) == REAL_IDENTITIES and images != REAL_IMAGES[modality]:
            warnings.append(
                f"expected {REAL_IMAGES[modality]} {modality} images as in the published set, found {images}"
            )
    if len(splits) != 2 * len(SPLITS):
        warnings.append(
            f"expected {len(SPLITS)} splits, found {len(splits) // 2}; the published figures are means over ten"
        )
    return write_set(
        records,
        out,
        NAME,
        splits,
        root=root,
        source="RegDB folder layout",
        left_out=left_out,
        warnings=warnings,
        **options,
    )


def read_splits(root: Path) -> tuple[dict[str, list[int]], set[str]]:
    """The pid lists train_1, test_1, ... and the set of all paths they name.

    Raises InputError if lists contradict each other.
    """
    splits: dict[str, list[int]] = {}
    listed: set[str] = set()
    for number in SPLITS:
        files = {
            part: [root / "idx" / f"{part}_{kind}_{number}.txt" for kind in ("visible", "thermal")]
            for part in ("train", "test")
        }
        if number > 1 and not any(path.exists() for paths in files.values() for path in paths):
            continue
        both: dict[str, list[int]] = {}
        for part, (visible, thermal) in files.items():
            pids = [_pids(path, listed) for path in (visible, thermal)]
            if pids[0] != pids[1]:
                odd = sorted(pids[0] ^ pids[1])[0]
                raise InputError(
                    f"expected the same ids in {visible.name} and {thermal.name}, got {odd} in only one of them;"
                    " restore the lists"
                )
            both[f"{part}_{number}"] = sorted(pids[0])
        check_disjoint(both, f"idx/*_{number}.txt")
        splits |= both
    return splits, listed


def read(root: Path, listed: set[str]) -> tuple[list[Record], list[Omission]]:
    """The listed images, and what is left out. Raises InputError if a listed image or a modality is missing."""
    records: list[Record] = []
    left_out: list[Omission] = []
    for modality, name in FOLDERS.items():
        folders, strangers = pid_folders(need_folder(root / name, f"the {modality} images"))
        for pid, folder in folders:
            files, others = image_files(folder)
            strangers += others
            for number, file in enumerate(files, 1):
                source = file.relative_to(root).as_posix()
                if source in listed:
                    records.append(Record(file, pid, 0, modality, None, number))
                else:
                    left_out.append(Omission(source, "in no list of idx"))
        left_out += not_images(strangers, root)
    missing = listed.difference(record.path.relative_to(root).as_posix() for record in records)
    if missing:
        raise InputError(f"images listed in idx are missing: {len(missing)}, the first is {min(missing)}; restore them")
    return records, left_out


def _pids(path: Path, listed: set[str]) -> set[int]:
    """The ids of one list, read from its paths (`Visible/285/name.bmp 0`). Adds the paths to `listed`."""
    pids = set()
    for source, _ in read_path_list(path):
        parts = source.split("/")
        if len(parts) != 3 or parts[0] not in FOLDERS.values() or not re.fullmatch("[0-9]{1,18}", parts[1]):
            raise InputError(f"{path}: expected paths like Visible/285/name.bmp, got {source[:80]!r}; restore the file")
        pids.add(int(parts[1]))
        listed.add(source)
    return pids
