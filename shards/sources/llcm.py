"""Packs LLCM from its own folders and lists.

Training: idx/train_{vis,nir}.txt with lines `vis/0001/0001_c01_*.jpg label`. Test: the ids of idx/test_id.txt, images
test_{vis,nir}/cam{1..9}/{id:04d}/*. The pid is the number of the identity's folder, for training too.
"""

import re
from collections import defaultdict
from pathlib import Path
from typing import Unpack

from shards.sources.layout import (
    check_disjoint,
    check_spelling,
    image_files,
    need_folder,
    not_images,
    pid_folders,
    read_ids,
    read_path_list,
)
from shards.sources.record import Omission, Record
from shards.writer import Packed, PackOptions
from shards.writer import pack as write_set
from tacaf.datasets import LLCM
from tacaf.vocabulary import InputError, Modality, Split

NAME = LLCM.name
FOLDERS = {Modality.VISIBLE: "vis", Modality.INFRARED: "nir"}
CAMERAS = LLCM.cameras[Modality.VISIBLE]  # all of them; camera 3 has no infrared images
REAL_IDENTITIES = LLCM.identities
REAL_IMAGES = sum(count.images for count in LLCM.images)


def pack(root: Path, out: Path, **options: Unpack[PackOptions]) -> Packed:
    """Pack the LLCM folders below `root` into the shard set `out`. Images that are in no list are left out."""
    root = Path(root)
    need_folder(root, "the LLCM folders vis, nir, test_vis, test_nir and idx")
    check_spelling(root, [*FOLDERS.values(), *(f"test_{name}" for name in FOLDERS.values()), "idx"])
    need_folder(root / "idx", "train_vis.txt, train_nir.txt and test_id.txt")
    training, warnings = read_training(root)
    splits = {"train": sorted({record.pid for record in training}), "test": read_ids(root / "idx" / "test_id.txt")}
    check_disjoint(splits, "idx/train_*.txt, idx/test_id.txt")
    test, left_out = read_test(root, set(splits["test"]))
    images = len(training) + len(test)
    if {name: len(pids) for name, pids in splits.items()} == REAL_IDENTITIES and images != REAL_IMAGES:
        warnings.append(
            f"expected {REAL_IMAGES} images as in the published set, found {images}; results are not comparable"
        )
    records = training + test
    return write_set(
        records,
        out,
        NAME,
        splits,
        root=root,
        source="LLCM folder layout",
        left_out=left_out,
        warnings=warnings,
        **options,
    )


def read_training(root: Path) -> tuple[list[Record], list[str]]:
    """The images of the training lists, and a warning if the lists' labels do not follow the folders' ids."""
    records: list[Record] = []
    pairs: set[tuple[int, str]] = set()
    for modality, name in FOLDERS.items():
        path = root / "idx" / f"train_{name}.txt"
        files: dict[tuple[int, int], set[str]] = defaultdict(set)
        for source, label in read_path_list(path):
            found = re.fullmatch(rf"{name}/([0-9]{{1,18}})/[^/]*_c([0-9]{{1,5}})_[^/]*", source)
            if not found:
                raise InputError(
                    f"{path}: expected paths like {name}/0001/0001_c01_name.jpg, got {source[:80]!r}; restore it"
                )
            pid, camid = int(found[1]), int(found[2])
            files[pid, camid].add(source)
            pairs.add((pid, label))
        for (pid, camid), sources in files.items():
            for number, source in enumerate(sorted(sources), 1):
                records.append(Record(root / source, pid, camid, modality, Split.TRAIN, number))
    consistent = len(pairs) == len({pid for pid, _ in pairs}) == len({label for _, label in pairs})
    return records, [] if consistent else [
        "labels in idx/train_*.txt do not follow the folders' ids; the folders' ids are used"
    ]


def read_test(root: Path, pids: set[int]) -> tuple[list[Record], list[Omission]]:
    """The images of the test ids, and what is left out."""
    records: list[Record] = []
    left_out: list[Omission] = []
    for modality, name in FOLDERS.items():
        top = need_folder(root / f"test_{name}", f"the {modality} test images, cam1 to cam9")
        cameras = {f"cam{camid}" for camid in CAMERAS}
        check_spelling(top, cameras)
        left_out += not_images(sorted(path for path in top.iterdir() if path.name not in cameras), root)
        for camid in CAMERAS:
            if not (top / f"cam{camid}").is_dir():
                continue
            folders, strangers = pid_folders(top / f"cam{camid}")
            for pid, folder in folders:
                files, others = image_files(folder)
                strangers += others
                if pid in pids:
                    records += [Record(f, pid, camid, modality, Split.TEST, n) for n, f in enumerate(files, 1)]
                else:
                    place = folder.relative_to(root).as_posix()
                    left_out.append(
                        Omission(place, f"identity {pid} is not in test_id.txt: {len(files)} images", len(files))
                    )
            left_out += not_images(strangers, root)
    return records, left_out
