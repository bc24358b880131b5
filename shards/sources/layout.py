"""What raw folders have in common: the images of a folder in order, lists of ids, lists of paths."""

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
    """`folder`, if it is one. InputError names what it should hold."""
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing"
        raise InputError(f"expected the folder {shown(folder)} with {holds}, found {got}; check --root")
    return folder


def check_spelling(folder: Path, names: Collection[str]) -> None:
    """InputError for a folder that is called almost as one of `names`: `Cam2` or `cam02` in place of `cam2`."""
    expected = {_spelled(name): name for name in names}
    for path in sorted(folder.iterdir()):
        wanted = expected.get(_spelled(path.name))
        if wanted is not None and path.name not in names and path.is_dir():
            raise InputError(f"expected the folder {wanted} in {shown(folder)}, got {shown(path.name)}; rename it")


def is_image_name(name: str) -> bool:
    """Whether a file of this name counts as an image; hidden ones (AppleDouble `._0001.jpg`) do not."""
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")


def image_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The images of a folder with names ascending (their places are the image numbers, from 1), and all the rest.

    An image that cannot be read (a link to nothing) is one too, so that the numbers of the others stay.
    """
    entries = sorted(folder.iterdir(), key=lambda path: path.name)
    images = [path for path in entries if is_image_name(path.name) and not path.is_dir()]
    known = set(images)
    return images, [path for path in entries if path not in known]


def pid_folders(folder: Path) -> tuple[list[tuple[int, Path]], list[Path]]:
    """The folders whose name is a number, as (pid, folder) ascending, and everything else in `folder`.

    InputError for a number that is written another way (`3.0`), or twice (`3` and `0003`).
    """
    folders: dict[int, Path] = {}
    others = []
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or number_of(path.name) is None:
            others.append(path)
            continue
        if not re.fullmatch("[0-9]{1,18}", path.name):
            raise InputError(f"expected folders named by whole numbers in {shown(folder)}, got {shown(path.name)!r}")
        twin = folders.setdefault(int(path.name), path)
        if twin is not path:
            raise InputError(f"expected one folder for a number in {shown(folder)}, got {twin.name} and {path.name}")
    return sorted(folders.items()), others


def number_of(text: str) -> str | None:
    """The whole number that a word means, however it is written (`3`, `03`, `3.0`, ` 3`), or None for another word."""
    found = re.fullmatch(r"\+?0*([0-9]+?)(\.0*)?", unicodedata.normalize("NFKC", text).strip())
    return found[1] if found else None


def not_images(paths: Iterable[Path], root: Path) -> list[Omission]:
    """Strangers between the images; they are listed, and those in a stranger's folder are counted."""
    found = []
    for path in paths:
        count = _images_below(path)
        more = f": {count} images" if count else ""
        found.append(Omission(path.relative_to(root).as_posix(), f"not an image of the layout{more}", count))
    return found


def read_text(path: Path, holds: str) -> str:
    """The text of a list file; a name in it that is not UTF-8 keeps its bytes. InputError if there is none."""
    try:
        text = read_bytes(path, MOST_LIST_BYTES).decode("utf-8", "surrogateescape")
    except InputError as error:
        raise InputError(f"expected {shown(path)} with {holds}, but: {error}; check --root") from None
    if "\0" in text:
        raise InputError(f"expected {shown(path)} with {holds}, but it is not a text file; check --root")
    return text.removeprefix("\ufeff")


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
    for number, line in enumerate(read_text(path, "lines of path and label").split("\n"), 1):
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
                some = ", ".join(map(str, shared[:5]))
                raise InputError(
                    f"expected splits without common identities, got {len(shared)} in both {name} and {other} "
                    f"({some}); correct {holds}"
                )


def _spelled(name: str) -> str:
    """What two spellings of a folder's name have in common."""
    return re.sub("(^|[^0-9])0+([0-9])", r"\1\2", re.sub(r"[\s_-]", "", name.casefold()))


def _images_below(path: Path) -> int:
    """The images in a folder, linked folders aside; 0 for a file."""
    return sum(is_image_name(name) for _, _, names in os.walk(path) for name in names)
