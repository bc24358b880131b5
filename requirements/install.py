"""Installs what this project needs, as locked, each checked by its hash: python requirements/install.py [EXTRA ...]

It fills the environment of the Python that runs it. pip stops where a file has another hash than the locks say, or
where a package is in none. Where pip finds a CPU build of PyTorch (`+cpu`), it is taken before PyPI's CUDA build.
"""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
# Of these alone the source is distributed, so code runs while they are installed. The rest are wheels.
SOURCE_ONLY = "deepspeed"


def requirements(extras: Iterable[str], pyproject: Path = HERE.parent / "pyproject.toml") -> list[str]:
    """What pyproject.toml asks for with these extras, an extra of its own spelled out. SystemExit: no such extra."""
    project = tomllib.loads(pyproject.read_text())["project"]
    found, names = list(project["dependencies"]), list(extras)
    for name in names:  # grows while it is read
        if name not in project["optional-dependencies"]:
            sys.exit(f"expected an extra of {sorted(project['optional-dependencies'])}, got {name!r}")
        for line in project["optional-dependencies"][name]:
            own = re.fullmatch(rf"{project['name']}\[(.*)\]", line)
            if own is None:
                found.append(line)
            else:
                names += [extra.strip() for extra in own[1].split(",")]
    return found


def pip(*words: str) -> str:
    """Run this environment's pip; what it printed on standard output. SystemExit with its status where it fails."""
    done = subprocess.run([sys.executable, "-m", "pip", *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(done.stdout, end="")
        sys.exit(done.returncode)
    return done.stdout


def torch_build() -> str:
    """The version of PyTorch that is installed, or else that pip takes by itself: with `+cpu` for a CPU build.

    Where files must match a hash, pip prefers an index that states it over a folder of wheels, so it is asked before.
    """
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        words = ("--dry-run", "--no-deps", "--only-binary", ":all:", "--quiet", "--report", "-")
        report = json.loads(pip("install", *words, "--requirement", str(HERE / "torch.in")))
        return report["install"][0]["metadata"]["version"]


def install(torch: str, wanted: list[str]) -> None:
    """Install packages and all that they need, from the locks alone; `torch` is the build of PyTorch."""
    build = "torch-cpu.txt" if torch.endswith("+cpu") else "torch-cuda.txt"
    checks = ["--quiet", "--require-hashes", "--constraint", str(HERE / "lock.txt"), "--constraint", str(HERE / build)]
    pip("install", *checks, "--no-build-isolation", "--only-binary", ":all:", "--no-binary", SOURCE_ONLY, *wanted)


if __name__ == "__main__":
    wanted = requirements(sys.argv[1:])
    pip("install", "--quiet", "--require-hashes", "--only-binary", ":all:", "--requirement", str(HERE / "tools.txt"))
    install(torch_build(), wanted)
