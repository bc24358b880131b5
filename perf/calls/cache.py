"""Triton's cache of compiled kernels: where it lies during a suite, what is in it, and a copy gathered ahead."""

import json
import os
import shutil
import tempfile
from pathlib import Path

from tacaf.child_processes import ROOT

GATHERED = ROOT / ".gpu" / "triton_cache"  # made by perf/gather_gpu_needs.py, ignored by git


def work_folder() -> Path:
    """A folder of this machine that later calls find again."""
    return Path(tempfile.gettempdir()) / "tacaf_gpu_suite"


def cache_variables(own: Path | None = None) -> dict[str, str]:
    """The environment of a part: caches of Triton and of torch.compile that stay from call to call.

    They are in the folder `own`, by default where the caller's environment says or else in `work_folder`.
    """
    places = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
    if own is not None:
        return {name: str(own / folder) for name, folder in places.items()}
    return {name: os.environ.get(name, str(work_folder() / folder)) for name, folder in places.items()}


def compiled_kernels(folder: Path | None = None) -> set[str]:
    """The keys of the kernels that the cache holds for a GPU."""
    folder = folder or Path(cache_variables()["TRITON_CACHE_DIR"])
    return {path.parent.name for path in folder.glob("*/*.cubin")}


def take_gathered(target: Path, source: Path = GATHERED) -> int:
    """Copy what was compiled ahead into the cache, where it is missing; how many kernels were taken.

    Triton notes where the files of a kernel lie, so a copy has to be told its new place.
    """
    taken = 0
    for entry in sorted(source.glob("*/")):
        place = target / entry.name
        if place.exists():
            continue
        try:
            shutil.copytree(entry, place)
            for group in place.glob("__grp__*"):
                names = json.loads(group.read_text())["child_paths"]
                group.write_text(
                    json.dumps({"child_paths": {name: str(place / name) for name in names if (place / name).exists()}})
                )
        except (OSError, ValueError, KeyError):  # a full disk or a damaged entry: it is compiled again
            shutil.rmtree(place, ignore_errors=True)
            continue
        taken += 1
    return taken


def keep_only_binaries(folder: Path) -> None:
    """Remove what a cache holds for people to read, which is most of it."""
    for path in folder.glob("*/*"):
        if path.suffix not in (".cubin", ".json"):
            path.unlink()
