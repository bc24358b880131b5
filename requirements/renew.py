"""Writes the locks anew with uv: python requirements/renew.py UV [ARGUMENT OF UV ...]; `make lock` calls it.

Versions stay where they still fit; `--upgrade` or `--upgrade-package NAME` among uv's arguments renews them.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from tacaf.files import write_whole  # noqa: E402

HERE = ROOT / "requirements"
# lock -> what it is made from
EVERYWHERE = ("--universal", "--python-version=3.11")
GPU_HOST = ("--python-platform=x86_64-manylinux_2_28", "--python-version=3.12")
TOOLS = "requirements/tools.in"
LOCKS = {
    "lock.txt": ("pyproject.toml", "requirements/lock.in", TOOLS, "--all-extras", *EVERYWHERE),
    "tools.txt": (TOOLS, "--constraints=requirements/lock.txt", *EVERYWHERE),
    "gpu-host.txt": ("requirements/gpu-host.in", TOOLS, *GPU_HOST),
}


def cpu_hashes(version: str, listing: str) -> list[str]:
    """The hashes of PyTorch's CPU builds of this version. SystemExit: none is listed."""
    found = re.findall(rf"^([0-9a-f]{{64}})  torch-{re.escape(version)}\+cpu-\S+$", listing, re.MULTILINE)
    if not found:
        sys.exit(f"expected the hashes of the CPU builds of torch {version} in torch-cpu.sha256, got none; add them")
    return found


def with_cpu_builds(lock: str, listing: str) -> str:
    """A lock in which PyTorch's CPU builds stand beside those of PyPI: they have the same version but another index."""
    return re.sub(
        r"^torch==(\S+).* \\\n",
        lambda line: line[0] + "".join(f"    --hash=sha256:{digest} \\\n" for digest in cpu_hashes(line[1], listing)),
        lock,
        flags=re.MULTILINE,
    )


def without_hashes(lock: str) -> str:
    """The versions of a lock alone, so that every hash is asked for anew."""
    return re.sub(r" \\\n(    --hash=\S+( \\)?\n)+", "\n", lock)


def compiled(uv: str, name: str, words: list[str]) -> str:
    """The new text of a lock."""
    old = HERE / name
    with tempfile.TemporaryDirectory() as folder:
        new = Path(folder) / name
        new.write_text(without_hashes(old.read_text()) if old.exists() else "")
        command = [uv, "pip", "compile", "--quiet", *LOCKS[name], *words, f"--output-file={new}"]
        command += ["--generate-hashes", "--no-emit-index-url", "--custom-compile-command=make lock"]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        if status:
            sys.exit(status)
        return new.read_text()


if __name__ == "__main__":
    for name in LOCKS:
        text = compiled(sys.argv[1], name, sys.argv[2:])
        if name == "lock.txt":
            text = with_cpu_builds(text, (HERE / "torch-cpu.sha256").read_text())
        write_whole(HERE / name, text)
