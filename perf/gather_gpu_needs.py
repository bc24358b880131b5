"""Gathers the packages that a call of the GPU suite needs and a GPU machine lacks.

    python perf/gather_gpu_needs.py --call N [--into .gpu] [--cache PYTHON]

DIR/wheels gets the call's packages for Python 3.12 on Linux, to be installed there with pip's --no-index and --target
into a folder on PYTHONPATH. DIR/dali gets a small copy of DALI in parts, to be unpacked there with tar into the same
folder. With --cache PYTHON, DIR/triton_cache gets the kernels, compiled for an H100 by that Python's Triton, which must
have the GPU machine's version. Prints the sizes, and the commands to run on the GPU machine.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # so that it runs in a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tacaf.start import start

if __name__ == "__main__":
    start("perf.gather_gpu_needs")

import argparse
import os
import subprocess
import tempfile
from collections.abc import Sequence

from perf.calls.cache import keep_only_binaries
from perf.calls.needs import NEEDS
from perf.calls.plan import CALLS
from perf.calls.slim_dali import pack
from perf.calls.wheels import GatherError, fetch
from tacaf.child_processes import ROOT, child_environment
from tacaf.command import Parser, entry, to_path
from tacaf.vocabulary import InputError


def megabytes(paths: Sequence[Path]) -> float:
    return sum(path.stat().st_size for path in paths) / 1e6


def gather(number: int, folder: Path) -> list[Path]:
    """The files of a call's packages, which are made unless they exist."""
    (folder / "wheels").mkdir(parents=True, exist_ok=True)
    files = list[Path]()
    for name in CALLS[number].packages:
        if name == "dali":
            files += dali(folder / "dali")
        else:
            files += fetch(NEEDS[name].requirements, folder / "wheels")
        print(f"{name:12} ready", flush=True)
    return files


def dali(folder: Path) -> list[Path]:
    """The parts of the small copy of DALI; they are kept, because compressing them takes a minute or two."""
    there = sorted(folder.glob("dali.tar.xz.*"))
    if there:
        return there
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        return pack(fetch(NEEDS["dali"].requirements, Path(place)), folder)


def compile_ahead(python: str, folder: Path) -> list[Path]:
    """Fill a Triton cache for an H100, with the Triton of another Python."""
    command = [python, "-m", "perf.calls.compile_kernels", "--fake-gpu"]
    environment = child_environment(TRITON_CACHE_DIR=str(folder))
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    if done.returncode != 0:
        raise GatherError(f"{python} could not compile the kernels into {folder}: exit status {done.returncode}")
    keep_only_binaries(folder)
    return [path for path in folder.rglob("*") if path.is_file()]


def commands(number: int, folder: Path) -> str:
    """The commands to run on the GPU machine, in the root of the tree, before the suite; the cache needs none."""
    if not CALLS[number].packages:
        return "export PYTHONPATH=."
    lines = [f"python3 -m pip install -q --no-index --no-deps --no-compile --target SITE {folder}/wheels/*.whl"]
    if "dali" in CALLS[number].packages:
        lines.append(f"cat {folder}/dali/dali.tar.xz.* | tar -xJ -C SITE  # when all parts are there")
    return "\n".join([*lines, "export PYTHONPATH=SITE:."])


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--call", type=int, choices=sorted(CALLS), required=True)
    parser.add_argument(
        "--into", type=to_path, default=ROOT / ".gpu", metavar="DIR", help="default .gpu, ignored by git"
    )
    parser.add_argument("--cache", metavar="PYTHON", help="also compile the kernels ahead with this Python's Triton")
    args = parser.parse_args(argv)
    args.into = Path(os.path.relpath(args.into))
    try:
        files = gather(args.call, args.into)
        if args.cache:
            files += compile_ahead(args.cache, args.into / "triton_cache")
    except GatherError as error:
        raise InputError(str(error)) from None
    for path in sorted(files, key=lambda path: -path.stat().st_size)[:20]:
        print(f"{path.stat().st_size / 1e6:8.2f} MB  {path.relative_to(args.into)}")
    print(f"{megabytes(files):8.2f} MB in {len(files)} files for call {args.call}\n{commands(args.call, args.into)}")
    return 0
