"""Installs what this project needs, as locked, each checked by its hash: python requirements/install.py [EXTRA ...]

It fills the environment of the Python that runs it. pip stops where a file has another hash than requirements/lock.txt
says, or where a package is not in it. Where pip finds a CPU build of PyTorch (`+cpu`), it is taken before PyPI's.
"""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
LOCK, TOOLS = HERE / "lock.txt", HERE / "tools.txt"
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


def install(*wanted: str) -> None:
    """Install packages and all that they need, from the lock alone."""
    checks = ["--quiet", "--require-hashes", "--constraint", str(LOCK)]
    pip("install", *checks, "--no-build-isolation", "--only-binary", ":all:", "--no-binary", SOURCE_ONLY, *wanted)


def torch_build() -> str:
    """The build of PyTorch to install, as a requirement.

    Where files must match a hash, pip prefers an index that states it over a folder of wheels, so it is asked before.
    """
    found = re.search(r"^torch==(\S+)", LOCK.read_text(), re.MULTILINE)
    assert found, f"{LOCK} has no torch"
    words = ("--dry-run", "--ignore-installed", "--no-deps", "--only-binary", ":all:", "--quiet", "--report", "-")
    report = json.loads(pip("install", *words, f"torch=={found[1]}"))
    return f"torch=={report['install'][0]['metadata']['version']}"


if __name__ == "__main__":
    pip("install", "--quiet", "--require-hashes", "--only-binary", ":all:", "--requirement", str(TOOLS))
    install(torch_build())
    install(*requirements(sys.argv[1:]))
