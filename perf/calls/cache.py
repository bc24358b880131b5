"""Triton's cache of compiled kernels during a suite: its folder, its content, and a copy that was gathered before."""

import json
import os
import shutil
import tempfile
from pathlib import Path

from tacaf.child_processes import ROOT

GATHERED = ROOT / ".gpu" / "triton_cache"  # made by perf/gather_gpu_needs.py, ignored by git


def work_folder() -> Path:
    """A folder on this machine that later calls use again."""
    return Path(tempfile.gettempdir()) / "tacaf_gpu_suite"


def cache_variables(own: Path | None = None) -> dict[str, str]:
    """Environment variables of a part: caches of Triton and torch.compile that are kept from call to call.

    They are in the folder `own`, by default where the caller's environment has them, or in `work_folder`.
    """
    places = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
    if own is not None:
        return {name: str(own / folder) for name, folder in places.items()}
    return {name: os.environ.get(name, str(work_folder() / folder)) for name, folder in places.items()}


def compiled_kernels(folder: Path | None = None) -> set[str]:
    """The keys of the GPU kernels in the cache."""
    folder = folder or Path(cache_variables()["TRITON_CACHE_DIR"])
    return {path.parent.name for path in folder.glob("*/*.cubin")}


def take_gathered(target: Path, source: Path = GATHERED) -> int:
    """Copy kernels that were compiled before into the cache, unless it has them. Returns the number of kernels copied.

    Triton records the paths of a kernel's files, so these are changed in the copy.
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
        except (OSError, ValueError, KeyError):  # a full disk or a damaged entry: the kernel is compiled again
            shutil.rmtree(place, ignore_errors=True)
            continue
        taken += 1
    return taken


def keep_only_binaries(folder: Path) -> None:
    """Remove the readable intermediate files of a cache, which are most of it."""
    for path in folder.glob("*/*"):
        if path.suffix not in (".cubin", ".json"):
            path.unlink()
