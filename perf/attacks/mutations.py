"""Damages a file's bytes or a JSON document's values, as a function of (seed, number)."""

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

HUGE_NUMBER = "9" * 400
DEEP = 5000
# Values of every type and of every awkward size, to replace other values with.
STRANGERS: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    10**30,
    0.5,
    -0.0,
    1e308,
    "",
    "x",
    "\u0000",
    "../../etc/passwd",
    "/etc/passwd",
    "\u202egnp",
    "a" * 10_000,
    [],
    [[]],
    {},
    {"": None},
    [0] * 1000,
)


# Values that are wrong almost everywhere, by their type, size or content.
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1.5, 10**400, 2**70),
    *("", "../x", "\0", "x" * 5000),
    *([], [[]], {}, {"a": {}}, [None]),
)

Damage = Callable[[bytes, random.Random], tuple[str, bytes]]


def mutate(data: bytes, seed: int, number: int, values: bool = True) -> tuple[str, bytes]:
    """What was done, and the damaged bytes, which differ from `data`.

    values: also replace values of a JSON document.
    """
    draw = random.Random(f"{seed}/{number}")
    kinds: list[Damage] = [_flip, _flip, _flip, _cut, _drop, _repeat, _noise]
    if values and _document(data) is not None:
        kinds += [_swap, _swap, _swap, _text]
    while True:
        name, damaged = draw.choice(kinds)(data, draw)
        if damaged != data:
            return name, damaged


def damaged(data: bytes, count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """`count` copies of a file with damaged bytes, and what was done to each."""
    return (mutate(data, seed, number, values=False) for number in range(count))


def retyped(value: Any) -> Iterator[tuple[str, Any]]:
    """Copies of a JSON value with one part of another type, one part missing, or one too many, and a description."""
    for path in _places(value, []):
        for odd in ODD_VALUES:
            changed = _replaced(value, path, odd)
            if changed != value:
                yield f"{path} = {str(odd)[:20]!r}", changed
        if path:
            yield f"{path} missing", _without(value, path)
    if isinstance(value, dict):
        yield "one key more", {**value, "one more": 1}


def _flip(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    if not data:
        return "a byte added", b"x"
    place, bit = draw.randrange(len(data)), draw.randrange(8)
    changed = bytearray(data)
    changed[place] ^= 1 << bit
    return f"bit {bit} of byte {place} flipped", bytes(changed)


def _cut(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    size = draw.choice([0, 1, draw.randrange(len(data) + 1), max(0, len(data) - 1)])
    return f"cut to {size} bytes", data[:size]


def _drop(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    start = draw.randrange(len(data) + 1)
    size = draw.randrange(1, 65)
    return f"{size} bytes at {start} left out", data[:start] + data[start + size :]


def _repeat(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    start = draw.randrange(len(data) + 1)
    size = draw.randrange(1, 65)
    return f"{size} bytes at {start} repeated", data[: start + size] + data[start:]


def _noise(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    start = draw.randrange(len(data) + 1)
    new = draw.randbytes(draw.randrange(1, 33))
    return f"{len(new)} random bytes at {start}", data[:start] + new + data[start + len(new) :]


def _swap(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """Replace a value of the document, or of one of its lines."""
    value, line, lines = _chosen(data, draw)
    places = list(_places(value, []))
    path = draw.choice(places)
    stranger = draw.choice(STRANGERS)
    text = json.dumps(_replaced(value, path, stranger)).encode()
    return f"{'.'.join(map(str, path)) or 'everything'} replaced by {str(stranger)[:30]!r}", _joined(lines, line, text)


def _text(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """Replace a value with text that no Python value produces: nesting, huge numbers, non-JSON constants, twin keys."""
    value, line, lines = _chosen(data, draw)
    places = list(_places(value, []))
    path = draw.choice(places)
    name, text = draw.choice(
        [
            ("deep lists", "[" * DEEP + "]" * DEEP),
            ("deep objects", '{"a":' * DEEP + "1" + "}" * DEEP),
            ("a number of 400 digits", HUGE_NUMBER),
            ("an infinity", "Infinity"),
            ("NaN", "NaN"),
            ("a number beyond the largest", "1e999"),
            ("a key given twice", '{"a": 1, "a": 2}'),
        ]
    )
    marked = json.dumps(_replaced(value, path, "\u0001here"))
    return f"{name} at {'.'.join(map(str, path)) or 'the top'}", _joined(
        lines, line, marked.replace('"\\u0001here"', text).encode()
    )


def _document(data: bytes) -> Any:
    """The JSON value, or a list of the values of JSON lines; None for anything else."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        pass
    try:
        return [json.loads(line) for line in data.splitlines() if line.strip()] or None
    except (ValueError, RecursionError):
        return None


def _chosen(data: bytes, draw: random.Random) -> tuple[Any, int, list[bytes]]:
    """The value of a document or of one of its JSON lines, the number of that line, and all lines."""
    try:
        return json.loads(data), 0, [data]
    except ValueError:
        lines = [line for line in data.splitlines() if line.strip()]
        line = draw.randrange(len(lines))
        return json.loads(lines[line]), line, lines


def _joined(lines: list[bytes], changed: int, text: bytes) -> bytes:
    return b"\n".join([*lines[:changed], text, *lines[changed + 1 :]])


def _places(value: Any, path: list[Any]) -> Iterator[list[Any]]:
    """The paths of all values in a document, including itself; only the first entries of long lists."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:4]) if isinstance(value, list) else ()
    for key, below in items:
        yield from _places(below, [*path, key])


def _replaced(value: Any, path: list[Any], stranger: Any) -> Any:
    if not path:
        return stranger
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _replaced(value[path[0]], path[1:], stranger)
    return copy


def _without(value: Any, path: list[Any]) -> Any:
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = _without(value[path[0]], path[1:])
    return copy
