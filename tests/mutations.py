"""Damage for files and documents: flipped bits, cut ends, repeated parts, and values of another type in their place."""

import copy
import random
from collections.abc import Iterator
from typing import Any

# One of each kind of value that a field may be given instead of its own.
ODD_VALUES = (None, True, -1, 0, 1.5, 10**400, 2**70, "", "../x", "\0", "x" * 5000, [], [[]], {}, {"a": {}}, [None])


def damaged(data: bytes, count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """`count` copies of a file with one damage each, and what it is; never the file itself."""
    dice = random.Random(seed)
    for _ in range(count):
        place = dice.randrange(len(data))
        kind = dice.choice(("bit", "bit", "bit", "byte", "cut", "zeros", "twice", "gone"))
        end = min(len(data), place + dice.randrange(1, 64))
        changed = {
            "bit": data[:place] + bytes([data[place] ^ 1 << dice.randrange(8)]) + data[place + 1 :],
            "byte": data[:place] + bytes([dice.randrange(256)]) + data[place + 1 :],
            "cut": data[:place],
            "zeros": data[:place] + bytes(end - place) + data[end:],
            "twice": data[:end] + data[place:],
            "gone": data[:place] + data[end:],
        }[kind]
        if changed != data:
            yield f"{kind} at {place}", changed


def retyped(value: Any) -> Iterator[tuple[str, Any]]:
    """Copies of a JSON value with one part of another kind, one part missing, or one too many; and where."""
    for path in _paths(value):
        for odd in ODD_VALUES:
            changed = copy.deepcopy(value)
            _holder(changed, path)[path[-1]] = odd
            if changed != value:
                yield f"{path} = {str(odd)[:20]!r}", changed
        changed = copy.deepcopy(value)
        del _holder(changed, path)[path[-1]]
        yield f"{path} missing", changed
    if isinstance(value, dict):
        yield "a key more", {**value, "one more": 1}
    for odd in ODD_VALUES:
        yield f"all = {str(odd)[:20]!r}", odd


def _paths(value: Any, above: tuple = ()) -> Iterator[tuple]:
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in parts:
        yield (*above, key)
        yield from _paths(below, (*above, key))


def _holder(value: Any, path: tuple) -> Any:
    for key in path[:-1]:
        value = value[key]
    return value
