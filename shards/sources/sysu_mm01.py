"""Packs SYSU-MM01 from its own folders: cam1..cam6/{id:04d}/{n:04d}.jpg and exp/{train,val,test}_id.txt (or .mat)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

from shards.pedestrians import benchmarks
from shards.sources.layout import (
    check_disjoint,
    check_spelling,
    image_files,
    need_folder,
    not_images,
    pid_folders,
    read_ids,
)
from shards.sources.record import Omission, Record
from shards.writer import Packed, PackOptions
from shards.writer import pack as write_set
from tacaf.datasets import SYSU_MM01
from tacaf.files import shown
from tacaf.mat_file import read_mat
from tacaf.shard_set import Tally
from tacaf.vocabulary import InputError, Modality, Split

NAME = SYSU_MM01.name
CAMERAS = SYSU_MM01.modality_of_camera
REAL_IDENTITIES = SYSU_MM01.identities


def pack(root: Path, out: Path, **options: Unpack[PackOptions]) -> Packed:
    """Pack the SYSU-MM01 folders below `root` into the shard set `out`. Images of ids in no list are left out."""
    root = Path(root)
    need_folder(root, "the SYSU-MM01 folders cam1 to cam6 and exp")
    check_spelling(root, [*(f"cam{camid}" for camid in CAMERAS), "exp"])
    splits = {split.value: _id_list(need_folder(root / "exp", "the id lists"), split.value) for split in Split}
    check_disjoint(splits, "exp/*_id.txt")
    records, left_out = read(root, {pid: Split(name) for name, pids in splits.items() for pid in pids})
    packed = write_set(
        records,
        out,
        benchmarks.set_name(root) or NAME,
        splits,
        root=root,
        source="SYSU-MM01 folder layout",
        locations=SYSU_MM01.locations,
        left_out=left_out,
        warnings=[f"no folder cam{camid}" for camid in CAMERAS if not (root / f"cam{camid}").is_dir()],
        **options,
    )
    real = {name: len(pids) for name, pids in splits.items()} == REAL_IDENTITIES
    return packed.warn(*count_warnings(packed.index.counts)) if real else packed


def read(root: Path, split_of: Mapping[int, Split]) -> tuple[list[Record], list[Omission]]:
    """Every image of the identities in `split_of`, and what is left out.

    Raises InputError if a modality has no folder.
    """
    records: list[Record] = []
    left_out: list[Omission] = []
    for modality in Modality:
        cameras = [camid for camid, sees in CAMERAS.items() if sees is modality]
        if not any((root / f"cam{camid}").is_dir() for camid in cameras):
            names = ", ".join(f"cam{camid}" for camid in cameras)
            raise InputError(f"expected {modality} images in {root} (folders {names}), found none; check --root")
    for camid, modality in CAMERAS.items():
        if not (root / f"cam{camid}").is_dir():
            continue
        folders, strangers = pid_folders(root / f"cam{camid}")
        for pid, folder in folders:
            files, others = image_files(folder)
            strangers += others
            if pid in split_of:
                records += [Record(f, pid, camid, modality, split_of[pid], n) for n, f in enumerate(files, 1)]
            else:
                place = folder.relative_to(root).as_posix()
                left_out.append(Omission(place, f"identity {pid} is in no id list: {len(files)} images", len(files)))
        left_out += not_images(strangers, root)
    unknown = set(root.glob("cam*")) - {root / f"cam{camid}" for camid in CAMERAS}
    return records, left_out + not_images(sorted(unknown), root)


def count_warnings(counts: Mapping[str, Mapping[Modality, Tally]]) -> list[str]:
    """Warnings about deviations from the published counts, for a set with the real id lists."""
    warnings = []
    for splits, modality, expected in SYSU_MM01.images:
        modalities = Modality if modality is None else (modality,)
        found = sum(counts[split][one].images for split in splits for one in modalities)
        if found != expected:
            warnings.append(
                f"{'+'.join(splits)}: expected {expected} {modality} images as in the published set, found {found}; "
                "results are not comparable"
            )
    return warnings


def _id_list(folder: Path, split: str) -> list[int]:
    path = folder / f"{split}_id.txt"
    if path.exists() or not path.with_suffix(".mat").exists():
        return read_ids(path)
    found = read_mat(path.with_suffix(".mat"), "id").ravel()
    if found.dtype == object or not ((found >= 0) & (found < 1e18) & (found % 1 == 0)).all():
        where = shown(path.with_suffix(".mat"))
        raise InputError(f"{where}: expected whole numbers under id, got others; restore it or {split}_id.txt")
    return sorted({int(pid) for pid in found.tolist()})
