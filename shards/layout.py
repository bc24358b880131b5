"""What raw folders have in common: the images of a folder in order, lists of ids, lists of paths."""

import re
from collections.abc import Iterable
from pathlib import Path

from shards.record import Omission
from tacaf.images import SUFFIXES
from tacaf.vocabulary import InputError


def need_folder(folder: Path, holds: str) -> Path:
    """`folder`, if it is one. InputError names what it should hold."""
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing"
        raise InputError(f"expected the folder {folder} with {holds}, found {got}; check --root")
    return folder


def image_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The images of a folder with names ascending (their places are the image numbers, from 1), and its other files."""
    files = sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.name)
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    return images, [path for path in files if path.suffix.lower() not in SUFFIXES]


def pid_folders(folder: Path) -> tuple[list[tuple[int, Path]], list[Path]]:
    """The folders whose name is a number, as (pid, folder) ascending, and everything else in `folder`."""
    entries = sorted(folder.iterdir())
    numbered = [path for path in entries if path.is_dir() and re.fullmatch("[0-9]{1,18}", path.name)]
    return sorted((int(path.name), path) for path in numbered), [path for path in entries if path not in numbered]


def not_images(paths: Iterable[Path], root: Path) -> list[Omission]:
    """Strangers between the images; they are listed, but no image is missing by them."""
    return [Omission(path.relative_to(root).as_posix(), "not an image of the layout", images=0) for path in paths]


def read_text(path: Path, holds: str) -> str:
    """The text of a list file. InputError if it is missing or no text."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise InputError(f"expected {path} with {holds}, got: {reason}; check --root") from None


def read_ids(path: Path) -> list[int]:
    """A list of ids separated by commas or white space (SYSU-MM01 and LLCM: one line), ascending, each once."""
    words = re.split(r"[,\s]+", read_text(path, "ids separated by commas").strip(", \n\r\t"))
    wrong = [word for word in words if word and not re.fullmatch("[0-9]{1,18}", word)]
    if wrong:
        raise InputError(f"{path}: expected ids separated by commas, got {wrong[0][:40]!r}; restore the file")
    return sorted({int(word) for word in words if word})


def read_path_list(path: Path) -> list[tuple[str, str]]:
    """Lines of `path label`, as RegDB and LLCM have them. InputError names a line of another form."""
    found = []
    for number, line in enumerate(read_text(path, "lines of path and label").splitlines(), 1):
        if not line.strip():
            continue
        words = line.rsplit(maxsplit=1)
        if len(words) != 2:
            raise InputError(f"{path}:{number}: expected a path and a label, got {line[:80]!r}; restore the file")
        found.append((words[0].replace("\\", "/").removeprefix("./"), words[1]))
    return found


def check_disjoint(splits: dict[str, list[int]], holds: str) -> None:
    """InputError if a split is empty or two share an identity: training on a test identity would void every result."""
    names = list(splits)
    for place, name in enumerate(names):
        if not splits[name]:
            raise InputError(f"expected identities in split {name} ({holds}), found none; restore the list")
        for other in names[place + 1 :]:
            shared = sorted(set(splits[name]) & set(splits[other]))
            if shared:
                shown = ", ".join(map(str, shared[:5]))
                raise InputError(
                    f"expected splits without common identities, got {len(shared)} in both {name} and {other} "
                    f"({shown}); mend {holds}"
                )
