"""Reads what the raw folders of all data sets have in common: folders of images, lists of ids, lists of paths."""

import os
import re
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path

from shards.sources.record import Omission
from tacaf.files import read_bytes, shown
from tacaf.images import SUFFIXES
from tacaf.vocabulary import InputError

MOST_LIST_BYTES = 2**30  # tens of millions of images


def need_folder(folder: Path, holds: str) -> Path:
    """Returns `folder` if it is a folder. Otherwise raises InputError, naming what the folder should contain."""
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing"
        raise InputError(f"expected the folder {shown(folder)} with {holds}, found {got}; check --root")
    return folder


def check_spelling(folder: Path, names: Collection[str]) -> None:
    """Raises InputError if a folder is called almost like one of `names`: `Cam2` or `cam02` instead of `cam2`."""
    expected = {_spelled(name): name for name in names}
    for path in sorted(folder.iterdir()):
        right = expected.get(_spelled(path.name))
        if right is not None and path.name not in names and path.is_dir():
            raise InputError(f"expected the folder {right} in {shown(folder)}, got {shown(path.name)}; rename it")


def is_image_name(name: str) -> bool:
    """Whether a file of this name counts as an image; hidden ones (AppleDouble `._0001.jpg`) do not."""
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")


def image_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The images of a folder in the order of their names, and everything else in it. The first image has number 1.

    An image that cannot be read, such as a dangling link, is included, so that the numbers of the others do not change.
    """
    entries = sorted(folder.iterdir(), key=lambda path: path.name)
    images = [path for path in entries if is_image_name(path.name) and not path.is_dir()]
    known = set(images)
    return images, [path for path in entries if path not in known]


def pid_folders(folder: Path) -> tuple[list[tuple[int, Path]], list[Path]]:
    """The folders whose name is a number, as (pid, folder) ascending, and everything else in `folder`.

    Raises InputError if a number is written in another form (`3.0`), or twice (`3` and `0003`).
    """
    folders: dict[int, Path] = {}
    others = []
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or number_of(path.name) is None:
            others.append(path)
            continue
        if not re.fullmatch("[0-9]{1,18}", path.name):
            raise InputError(
                f"expected folders named by whole numbers in {shown(folder)}, got {shown(path.name)!r}; rename it"
            )
        twin = folders.setdefault(int(path.name), path)
        if twin is not path:
            raise InputError(
                f"expected one folder per number in {shown(folder)}, got {twin.name} and {path.name}; merge them"
            )
    return sorted(folders.items()), others


def number_of(text: str) -> str | None:
    """The digits of the whole number that `text` means (`3`, `03`, `3.0`, ` 3`), or None if it is not a number."""
    found = re.fullmatch(r"\+?0*([0-9]+?)(\.0*)?", unicodedata.normalize("NFKC", text).strip())
    return found[1] if found else None


def not_images(paths: Iterable[Path], root: Path) -> list[Omission]:
    """An omission for each path, with the number of images below it if it is a folder."""
    found = []
    for path in paths:
        count = _images_below(path)
        more = f": {count} images" if count else ""
        found.append(Omission(path.relative_to(root).as_posix(), f"not an image of the layout{more}", count))
    return found


def read_text(path: Path, holds: str) -> str:
    """The text of a list file. Bytes that are not UTF-8 are kept as surrogates.

    Raises InputError if the file cannot be read or is not text.
    """
    try:
        text = read_bytes(path, MOST_LIST_BYTES).decode("utf-8", "surrogateescape")
    except InputError as error:
        raise InputError(f"expected {shown(path)} with {holds}, got: {error}; check --root") from None
    if "\0" in text:
        raise InputError(f"expected {shown(path)} with {holds}, but it is not a text file; check --root")
    return text.removeprefix("\ufeff")


def read_ids(path: Path) -> list[int]:
    """The ids of a list separated by commas or white space (SYSU-MM01 and LLCM: one line), ascending, each once.

    Raises InputError if a word is not an id.
    """
    words = re.split(r"[,\s]+", read_text(path, "ids separated by commas").strip(", \n\r\t"))
    wrong = [word for word in words if word and not re.fullmatch("[0-9]{1,18}", word)]
    if wrong:
        raise InputError(f"{path}: expected ids separated by commas, got {wrong[0][:40]!r}; restore the file")
    return sorted({int(word) for word in words if word})


def read_path_list(path: Path) -> list[tuple[str, str]]:
    """The lines `path label` of a list of RegDB or LLCM. Raises InputError, naming the line, for any other line."""
    found = []
    for number, line in enumerate(read_text(path, "lines of path and label").split("\n"), 1):
        if not line.strip():
            continue
        words = line.rsplit(maxsplit=1)
        if len(words) != 2:
            raise InputError(f"{path}:{number}: expected a path and a label, got {line[:80]!r}; restore the file")
        found.append((words[0].replace("\\", "/").removeprefix("./"), words[1]))
    return found


def check_disjoint(splits: dict[str, list[int]], holds: str) -> None:
    """Raises InputError if a split is empty or two splits share an identity.

    Training on a test identity would make every result meaningless.
    """
    names = list(splits)
    for place, name in enumerate(names):
        if not splits[name]:
            raise InputError(f"expected identities in split {name} ({holds}), found none; restore the list")
        for other in names[place + 1 :]:
            shared = sorted(set(splits[name]) & set(splits[other]))
            if shared:
                some = ", ".join(map(str, shared[:5]))
                raise InputError(
                    f"expected splits without common identities, got {len(shared)} in both {name} and {other} "
                    f"({some}); correct {holds}"
                )


def _spelled(name: str) -> str:
    """The form that all spellings of a folder's name have in common."""
    return re.sub("(^|[^0-9])0+([0-9])", r"\1\2", re.sub(r"[\s_-]", "", name.casefold()))


def _images_below(path: Path) -> int:
    """The number of images below a folder, without linked folders; 0 for a file."""
    return sum(is_image_name(name) for _, _, names in os.walk(path) for name in names)
