"""Reading configuration files: YAML, merged over its `base:` files and overridden by `--set a.b=c`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tacaf.files import path_of, read_bytes, reason_of, shown
from tacaf.train.plain_yaml import parse_yaml, short_name
from tacaf.vocabulary import InputError

MOST_BYTES = 2**18  # of a file; the included ones have about one thousand
MOST_BASES = 16


def read_values(path: Path, overrides: list[str]) -> dict[str, Any]:
    """The values of a file, merged over those of its bases, with the overrides applied in order.

    Raises InputError if a file or an override cannot be read.
    """
    values = _with_bases(path, ())
    for override in overrides:
        _apply(values, override)
    return values


def _with_bases(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    where = short_name(path)
    try:
        place, exists = path.resolve(), path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"cannot read {where}: {reason_of(error)}") from None
    if place in seen:
        raise InputError(f"{where}: `base` forms a circle: {' -> '.join(map(shown, seen))}; remove one of them")
    if len(seen) > MOST_BASES:
        raise InputError(f"{where}: base: expected at most {MOST_BASES} files, each the base of the next, got more")
    if not exists:
        of = f", the base of {shown(seen[-1])}," if seen else ""
        advice = "" if seen else "; give its path with --config"
        raise InputError(f"the configuration file {where}{of} does not exist{advice}")
    values = _mapping_in(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str) or not base or "\0" in base:
        raise InputError(f"{where}: base: expected the path of a configuration file, got {_kind_of(base)}")
    return _merged(_with_bases(path.parent / path_of(base), (*seen, place)), values)


def _mapping_in(path: Path) -> dict[str, Any]:
    where = short_name(path)
    try:
        values = parse_yaml(read_bytes(path, MOST_BYTES).decode(), where)
    except UnicodeDecodeError:
        raise InputError(f"{where}: expected YAML, got bytes that are not UTF-8; correct the file") from None
    if not isinstance(values, dict):
        raise InputError(
            f"{where}: expected a mapping of keys, got {_kind_of(values)}; see launch/configs/ for examples"
        )
    return values


def _kind_of(value: Any) -> str:
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a mapping"
    return "nothing" if value is None else repr(value) if len(repr(value)) <= 60 else "a long text"


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict) and key != "milestones"
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _apply(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise InputError(f"--set: expected key=value such as train.epochs=20, got {short_name(override)}")
    *parents, last = name.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise InputError(
                f"--set {shown(name)}: {parent!r} is a value, not a section; see the resolved config with --dry-run"
            )
    if len(text) > MOST_BYTES:
        raise InputError(f"--set {shown(name)}: expected at most {MOST_BYTES:,} characters, got {len(text):,}")
    values[last] = parse_yaml(text, "--set", name)


def dotted(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name and the value of every entry of nested mappings."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from dotted(below, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
