"""The checkout that TACAF runs from: where it is, and whether Python imports its packages or others of the same names.

TACAF is not distributed as a wheel. `kernels`, `launch`, `shards` and `perf` are general names: another distribution
may install a package with one of them, and Python takes even a folder `shards` with a user's data for a package.
"""

from importlib.util import find_spec
from pathlib import Path

from tacaf.files import shown
from tacaf.vocabulary import InputError

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("kernels", "launch", "shards", "perf")


def require_own_packages() -> None:
    """Raise InputError if Python would import one of this repository's packages from elsewhere. Imports none of them.

    An absent package is not an error here, nor is a folder without `__init__.py` in its place, because the command may
    not need it.
    """
    for name in PACKAGES:
        spec = find_spec(name)
        if spec is not None and spec.origin is not None and not _is_ours(name, Path(spec.origin)):
            raise _taken_from_elsewhere(name, Path(spec.origin).parent)


def hidden_package(error: ModuleNotFoundError) -> InputError | None:
    """The error for an import that failed because a folder without `__init__.py` hides one of our packages, or None."""
    name = (error.name or "").partition(".")[0]
    spec = find_spec(name) if name in PACKAGES else None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()] if spec is not None else []
    return (
        None if not folders or _is_ours(name, folders[0] / "__init__.py") else _taken_from_elsewhere(name, folders[0])
    )


def _is_ours(name: str, origin: Path) -> bool:
    return origin.resolve() == ROOT / name / "__init__.py"


def _taken_from_elsewhere(name: str, folder: Path) -> InputError:
    return InputError(
        f"Python imports the package {name} from {shown(folder)} instead of {shown(ROOT / name)}; uninstall or rename"
        " what is there, or start the command from another folder"
    )
