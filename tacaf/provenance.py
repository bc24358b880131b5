"""Under which circumstances a run or a benchmark was made: versions, commit, command, devices."""

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tacaf.checkout import ROOT

PACKAGES = ("tacaf", "torch", "deepspeed", "nvidia-dali-cuda130", "webdataset", "triton", "numpy")


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str | None]:
    """Versions of Python and of the packages a result depends on; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def git_commit() -> str | None:
    """The commit of the source tree, with "+changes" when it has uncommitted ones; None outside a checkout.

    TACAF_COMMIT in the environment comes first: for a copy of the tree that has no history with it.
    """
    if given := os.environ.get("TACAF_COMMIT"):
        return given
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        status = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+changes" if status.stdout.strip() else "")


def command() -> str:
    """What was typed, without folders of this machine."""
    return f"{Path(sys.argv[0]).name} {shlex.join(without_folders(word) for word in sys.argv[1:])}".rstrip()


def environment(world_size: int) -> dict[str, Any]:
    """The circumstances of a run: versions, commit, command, devices."""
    import torch  # here, because nothing else in this file needs it

    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {
        "versions": versions(),
        "commit": git_commit(),
        "command": command(),
        "world_size": world_size,
        "cpu": cpu_name(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": gpus,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


_FOLDERS = re.compile(r"(?<![\w./-])/(?!/)(?:[^/\s'\"]+/+)*(?=[^/\s'\"])")


def without_folders(words: str) -> str:
    """A word or a whole command with every absolute path cut to its end, `/a/b/c` to `.../c`: results are published."""
    name, equals, value = words.rpartition("=")
    if value.startswith("/"):  # a path to the end, whatever is in it
        return f"{_FOLDERS.sub('.../', name)}{equals}.../{Path(value).name}"
    return _FOLDERS.sub(".../", words)


def published(value: Any) -> Any:
    """The same plain value with `without_folders` on every word in it, for a file that others read."""
    if isinstance(value, dict):
        return {key: published(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [published(below) for below in value]
    return without_folders(value) if isinstance(value, str) else value


def cpu_name() -> str:
    """The name of the processor, as the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
