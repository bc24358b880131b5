"""The circumstances of a call: GPU, driver, clocks, versions, commit."""

import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from tacaf.child_processes import ROOT
from tacaf.provenance import git_commit, versions


def machine() -> dict[str, Any]:
    """The facts that the figures depend on. Inside `fake_gpu` they describe the fake."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "memory_mib": properties.total_memory // 2**20,
        "multiprocessors": properties.multi_processor_count,
        "capability": list(torch.cuda.get_device_capability(0)),
        "driver": _nvidia_smi("--query-gpu=driver_version,power.limit", "--format=csv,noheader"),
        "clocks": _nvidia_smi("-q", "-d", "CLOCK"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "versions": versions(),
        "cpu_cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "commit": git_commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _nvidia_smi(*words: str) -> str | None:
    """The output of the driver's own tool, or None if it is missing or fails."""
    try:
        done = subprocess.run(["nvidia-smi", *words], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def missing(needs: tuple[str, ...]) -> list[str]:
    """One sentence for each package that cannot be imported and each file that the tree lacks."""
    found = []
    for need in needs:
        if "/" in need:
            if not (ROOT / need).exists():
                found.append(f"{need} is not in this tree")
        elif find_spec(need.partition(".")[0]) is None or find_spec(need) is None:
            found.append(f"{need} is not installed")
    return found


def program(name: str) -> str | None:
    """The path of a program of CUDA's toolkit, in PATH or where the toolkit is usually installed."""
    usual = (str(path) for path in sorted(Path("/usr/local").glob(f"cuda*/bin/{name}"), reverse=True))
    return shutil.which(name) or next(usual, None)
