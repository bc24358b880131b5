"""The circumstances of a run or a benchmark: versions, commit, command, devices."""

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
    """Versions of Python and of the packages a result depends on; None for a package that is not installed."""
    version_of: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            version_of[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version_of[package] = None
    return version_of


def git_commit() -> str | None:
    """The commit of the source tree, followed by "+changes" if some are uncommitted; None outside a checkout.

    The environment variable TACAF_COMMIT takes precedence, for a copy of the tree without its history.
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
    """The command line, without this machine's folders."""
    return f"{Path(sys.argv[0]).name} {shlex.join(without_folders(word) for word in sys.argv[1:])}".rstrip()


def environment(world_size: int) -> dict[str, Any]:
    """The circumstances of a run: versions, commit, command, devices."""
    import torch  # imported here, because nothing else in this file needs it

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
    """A word or a command with every absolute path shortened, `/a/b/c` to `.../c`, because results are published."""
    name, equals, value = words.rpartition("=")
    if value.startswith("/"):  # the whole value is a path, spaces included
        return f"{_FOLDERS.sub('.../', name)}{equals}.../{Path(value).name}"
    return _FOLDERS.sub(".../", words)


def published(value: Any) -> Any:
    """The same JSON-like value with `without_folders` applied to every string in it, for a file that is published."""
    if isinstance(value, dict):
        return {key: published(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [published(below) for below in value]
    return without_folders(value) if isinstance(value, str) else value


def cpu_name() -> str:
    """The name of the processor, as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
