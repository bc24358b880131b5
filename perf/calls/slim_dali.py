"""Packs a small copy of DALI for a GPU machine: for one Python and one chip, without video or TIFF, in parts."""

import lzma
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path

from perf.calls.fatbin import MAGIC, without_other_chips

PART_BYTES = 38 * 10**6
TAG = "cpython-312-"  # of the GPU machine's Python
CHIPS = (90,)  # H100 and H200
# extensions of the image library that need other libraries, or read formats that no data set of ours has
LEFT_OUT = ("libopencv_ext", "libnvtiff_ext", "libnvjpeg2k_ext", "libtiff_ext", "/tools/", "/include/", "/samples/")
# A regular package hides packages of the same name without this file elsewhere, so ours looks for them.
NAMESPACE = b'''"""Packages of NVIDIA, here and elsewhere on the path."""
__path__ = __import__("pkgutil").extend_path(__path__, __name__)
'''


def is_needed(name: str) -> bool:
    """Whether a file of a wheel is part of the copy."""
    if any(word in f"/{name}" for word in LEFT_OUT) or name.endswith((".a", ".h", ".hpp")):
        return False
    return ".cpython-" not in name or TAG in name


def files_of(wheels: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    """Yields (name, content) of every file of the copy."""
    yield "nvidia/__init__.py", NAMESPACE
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if is_needed(name) and not name.endswith("/"):
                    content = archive.read(name)
                    yield name, without_other_chips(content, CHIPS) if MAGIC in content else content


def pack(wheels: Iterable[Path], folder: Path) -> list[Path]:
    """Write the copy as parts of a tar.xz, dali.tar.xz.0 and so on, to be joined with `cat`."""
    buffer = BytesIO()
    with lzma.open(buffer, "wb", preset=6) as packed, tarfile.open(fileobj=packed, mode="w|") as tar:
        for name, content in files_of(wheels):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755 if ".so" in name else 0o644
            tar.addfile(entry, BytesIO(content))
    data, parts = buffer.getvalue(), list[Path]()
    for start in range(0, len(data), PART_BYTES):
        parts.append(folder / f"dali.tar.xz.{len(parts)}")
        parts[-1].write_bytes(data[start : start + PART_BYTES])
    return parts
