"""Triton's cache of compiled kernels: where it lies during a suite, what is in it, and a copy gathered ahead."""

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

    They lie in the folder `own`, by default where the caller's environment says or else in `work_folder`.
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
    """Copy what was compiled ahead into the cache, where it is missing; how many kernels were taken."""
    taken = 0
    for entry in sorted(source.glob("*/")):
        if not (target / entry.name).exists():
            try:
                shutil.copytree(entry, target / entry.name)
            except OSError:  # a full disk: what is missing is compiled again
                break
            taken += 1
    return taken
