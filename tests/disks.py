"""A disk that is full, for what must not lose anything then."""

import os
from pathlib import Path


def fill(folder: Path, but: int = 0) -> Path:
    """Leave `but` bytes, in whole pages, on the small disk that `folder` is; the file that takes the room."""
    path = folder / "filler"
    room = os.statvfs(folder)
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_bsize - but)
    return path
