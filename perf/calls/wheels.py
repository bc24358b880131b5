"""Downloads and builds the wheels that a GPU machine lacks, for that machine's Python."""

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

from tacaf.child_processes import ROOT

PYTHON = "3.12"
# pip accepts a wheel only for platforms that are named exactly
PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
)
LOCK = ROOT / "requirements/lock.txt"
BUILT = {"deepspeed": {"DS_BUILD_OPS": "0"}}  # distributed as source only; with no native op it is pure Python


class GatherError(Exception):
    """Something could not be downloaded or built; the message says what."""


def pinned(name: str, pins: dict[str, str]) -> str:
    """The requirement for pip, with the exact version if it is known."""
    return f"{name}=={pins[name]}" if name in pins else name


def constraints(path: Path = LOCK) -> dict[str, str]:
    """The exact versions in a lock, by name; if they differ between Pythons, those of the newest."""
    found = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", path.read_text(), re.MULTILINE)
    return {name.lower().replace("_", "-"): version for name, version in found}


def required_by(wheel: Path) -> dict[str, str]:
    """The exact versions that a wheel requires, by name. For example, pydantic needs one version of pydantic-core."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    found = (re.fullmatch(r"Requires-Dist: ([\w.-]+)==([\w.]+)", line.strip()) for line in lines)
    return {match[1].lower().replace("_", "-"): match[2] for match in found if match}


def fetch(names: Iterable[str], folder: Path) -> list[Path]:
    """A wheel of each package, without dependencies; in the exact version that an earlier wheel requires, if any."""
    pins, wheels = constraints(), list[Path]()
    for name in names:
        make = _build if name in BUILT else _download
        wheel = make(name, pinned(name, pins), folder)
        pins |= required_by(wheel)
        wheels.append(wheel)
    return wheels


def _download(name: str, requirement: str, folder: Path) -> Path:
    words = ["download", "--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    words += [word for platform in PLATFORMS for word in ("--platform", platform)]
    return _pip([*words, "-d", str(folder), requirement], name, folder)


def _build(name: str, requirement: str, folder: Path) -> Path:
    """Build a wheel with this environment's packages, because DeepSpeed's set-up imports PyTorch."""
    return _pip(["wheel", "--no-build-isolation", "-w", str(folder), requirement], name, folder, BUILT[name])


def _pip(words: list[str], name: str, folder: Path, variables: dict[str, str] | None = None) -> Path:
    """Run pip without dependencies. Returns the wheel of this package in the folder."""
    checks = ["--no-deps", "--quiet", "--require-hashes", "--constraint", str(LOCK)]
    command = [sys.executable, "-m", "pip", words[0], *checks, *words[1:]]
    done = subprocess.run(command, env={**os.environ, **(variables or {})}, capture_output=True, text=True, check=False)
    start = name.replace("-", "_").lower()
    found = [path for path in sorted(folder.glob("*.whl")) if path.name.lower().startswith(f"{start}-")]
    if done.returncode != 0 or len(found) != 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise GatherError(f"{words[-1]}: expected one wheel in {folder}, got {len(found)}; pip: {(lines or ['-'])[-1]}")
    return found[0]
