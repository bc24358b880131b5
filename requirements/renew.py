"""Writes the locks anew with uv: python requirements/renew.py UV [ARGUMENT OF UV ...]; `make lock` calls it.

Versions stay where they still fit; `--upgrade` or `--upgrade-package NAME` among uv's arguments renews them.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from tacaf.files import write_whole  # noqa: E402

HERE = ROOT / "requirements"
TORCH, TOOLS, LOCKED = "requirements/torch.in", "requirements/tools.in", "--constraints=requirements/lock.txt"
UNIVERSAL = ("--universal", "--python-version=3.11")
GPU_HOST = ("--python-platform=x86_64-manylinux_2_28", "--python-version=3.12")
# lock -> what it is made from. PyTorch and Triton have a lock for each build of PyTorch, because the CUDA build asks
# for an exact Triton. The NVIDIA libraries that it asks for too are in lock.txt.
LOCKS = {
    "lock.txt": ("pyproject.toml", "requirements/lock.in", TORCH, TOOLS, "--all-extras", *UNIVERSAL),
    "torch-cuda.txt": (TORCH, LOCKED, *UNIVERSAL),
    "torch-cpu.txt": ("pyproject.toml", "--all-extras", "--no-deps", LOCKED, *UNIVERSAL),
    "tools.txt": (TOOLS, LOCKED, *UNIVERSAL),
    "gpu-host.txt": ("requirements/gpu-host.in", TOOLS, *GPU_HOST),
}


def left_out(name: str) -> Iterable[str]:
    """The packages that a lock does not hold because another one does."""
    if name == "lock.txt":
        return ["torch", "triton"]
    if name in ("torch-cuda.txt", "torch-cpu.txt"):
        others = set(re.findall(r"^([\w.-]+)==", (HERE / "lock.txt").read_text(), re.MULTILINE))
        return sorted(others | {"torch"} if name == "torch-cpu.txt" else others)
    return []


def cpu_builds() -> str:
    """The entry of PyTorch's CPU builds, which are not on PyPI. SystemExit: no hash is listed for the version."""
    version = re.findall(r"^torch==(\S+)$", (ROOT / TORCH).read_text(), re.MULTILINE)[0]
    listing = (HERE / "torch-cpu.sha256").read_text()
    hashes = re.findall(rf"^([0-9a-f]{{64}})  torch-{re.escape(version)}\+cpu-\S+$", listing, re.MULTILINE)
    if not hashes:
        sys.exit(f"expected hashes of the CPU builds of torch {version} in requirements/torch-cpu.sha256, got none")
    return " \\\n".join([f"torch=={version}+cpu", *(f"    --hash=sha256:{digest}" for digest in hashes)]) + "\n"


def without_hashes(lock: str) -> str:
    """The versions of a lock alone, so that every hash is asked for anew."""
    return re.sub(r" \\\n(    --hash=\S+( \\)?\n)+", "\n", lock)


def compiled(uv: str, name: str, words: list[str]) -> str:
    """The new text of a lock. SystemExit with uv's status where there is none."""
    old = HERE / name
    with tempfile.TemporaryDirectory() as folder:
        new = Path(folder) / name
        new.write_text(without_hashes(old.read_text()) if old.exists() else "")
        command = [uv, "pip", "compile", "--quiet", *LOCKS[name], *words, f"--output-file={new}", "--generate-hashes"]
        command += ["--no-emit-index-url", "--custom-compile-command=make lock"]
        command += [f"--no-emit-package={package}" for package in left_out(name)]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        if status:
            sys.exit(status)
        return new.read_text().split("\n# The following packages were excluded")[0]


if __name__ == "__main__":
    for name in LOCKS:
        text = compiled(sys.argv[1], name, sys.argv[2:])
        write_whole(HERE / name, text + cpu_builds() if name == "torch-cpu.txt" else text)
