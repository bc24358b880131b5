"""Parsing YAML documents into plain values, within limits.

A value is text, a number, true or false, null, a list, or a mapping with text as keys. YAML allows more: tags that
build objects, dates, sets, repeated keys, aliases that grow without bound. All of these are refused or read as text.
"""

import math
from pathlib import Path
from typing import Any

import yaml

from tacaf.files import shown
from tacaf.vocabulary import InputError

MOST_NODES = 20_000  # of a file; aliases are counted as often as they are used
MOST_DEPTH = 32
_TAG = "tag:yaml.org,2002:"
_SCALARS = ("str", "null", "bool", "int", "float", "timestamp", "merge", "value")
_MOST_WHOLE = 2**63
_OPEN = (yaml.SequenceStartEvent, yaml.MappingStartEvent)
_CLOSE = (yaml.SequenceEndEvent, yaml.MappingEndEvent)


def parse_yaml(text: str, where: str, name: str = "") -> Any:
    """The plain value of a YAML document, which is the value of the key `name`.

    Raises InputError with `where`, the line, the key and what was expected there.
    """
    key = f"{short_name(name)}: " if name else ""
    try:
        _refuse_large(text, f"{where}: {key}".removesuffix(": "))
        node = yaml.compose(text, yaml.SafeLoader)
        return None if node is None else _Reader(where).plain(node, name)
    except RecursionError:
        raise InputError(f"{where}: {key}nested too deeply; see launch/configs/ for examples") from None
    except yaml.YAMLError as error:
        where = f"{where}: {_place_of(error)}{key}"
        raise InputError(f"{where}expected YAML, got {_problem_of(error)}; correct it") from None


class _Reader:
    """Turns YAML's nodes into plain values and counts them. `name` is always the dotted name of the node."""

    def __init__(self, where: str) -> None:
        self.where, self.nodes = where, 0
        self.constructor = yaml.SafeLoader("")

    def plain(self, node: yaml.Node, name: str = "", depth: int = 0) -> Any:
        self.nodes += 1
        if depth > MOST_DEPTH:
            self.refuse(node, name, f"at most {MOST_DEPTH} levels of nesting, got more (an anchor inside itself?)")
        if self.nodes > MOST_NODES:
            self.refuse(node, name, f"at most {MOST_NODES:,} values, aliases counted, got more")
        kind = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self.plain(below, f"{name}[{number}]", depth + 1) for number, below in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self.mapping(node, name, depth)
        if isinstance(node, yaml.ScalarNode) and kind in _SCALARS:
            return self.scalar(node, kind, name)
        tag = shown(node.tag.replace(_TAG, "!!"))
        return self.refuse(node, name, f"a plain value, got the tag {tag[:80]}; remove it")

    def mapping(self, node: yaml.MappingNode, name: str, depth: int) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                merged = {**self.merged(value_node, name, depth + 1), **merged}
                continue
            key, line = self.key(key_node, name), key_node.start_mark.line + 1
            below = f"{name}.{key}" if name else key
            if key in own:
                self.refuse(key_node, below, f"the key once, got it in lines {lines[key]} and {line}; remove one")
            own[key], lines[key] = self.plain(value_node, below, depth + 1), line
        return {**merged, **own}

    def key(self, node: yaml.Node, name: str) -> str:
        kind = node.tag.removeprefix(_TAG)
        if not isinstance(node, yaml.ScalarNode) or kind not in _SCALARS:
            return self.refuse(node, name, "text or a whole number as a key, got something else")
        return str(self.scalar(node, kind, name)) if kind == "int" else str(node.value)

    def merged(self, node: yaml.Node, name: str, depth: int) -> dict[str, Any]:
        """The entries that `<<:` merges: those of a mapping, or of several, of which the first has precedence."""
        value = self.plain(node, name, depth)
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, dict) for part in parts):
            self.refuse(node, name, "a mapping, or a list of them, after <<, got something else")
        return {key: value for part in reversed(parts) for key, value in part.items()}

    def scalar(self, node: yaml.ScalarNode, kind: str, name: str) -> Any:
        text = str(node.value)
        if kind == "null":
            return None
        if kind == "bool":
            return self.constructor.construct_yaml_bool(node)
        # Dates are read as text, and so is 12:30, which YAML takes for a number.
        if kind not in ("int", "float") or ":" in text:
            return text
        build = self.constructor.construct_yaml_int if kind == "int" else self.constructor.construct_yaml_float
        try:
            number = build(node)
        except (ValueError, OverflowError):  # such as an integer of thousands of digits
            number = math.inf
        if abs(number) < (_MOST_WHOLE if kind == "int" else math.inf):  # false for NaN too
            return number
        got = shown(text if len(text) <= 40 else f"{text[:20]}... of {len(text)} digits")
        return self.refuse(node, name, f"a number that is finite and not huge, got {got}")

    def refuse(self, node: yaml.Node, name: str, text: str) -> Any:
        place = f"{short_name(name)}: " if name else ""
        raise InputError(f"{self.where}: line {node.start_mark.line + 1}: {place}expected {text}")


def _refuse_large(text: str, where: str) -> None:
    """Raise InputError, judging by the events alone, if the document would take long to build."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, yaml.SafeLoader)):
        depth += isinstance(event, _OPEN) - isinstance(event, _CLOSE)
        if depth > MOST_DEPTH or count > 2 * MOST_NODES:
            many = f"{MOST_DEPTH} levels of nesting" if depth > MOST_DEPTH else f"{MOST_NODES:,} values"
            line = f"line {event.start_mark.line + 1}: " if event.start_mark else ""
            raise InputError(f"{where}: {line}expected at most {many}, got more")


def _place_of(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""


def _problem_of(error: yaml.YAMLError) -> str:
    return shown(getattr(error, "problem", None) or " ".join(str(error).split()))[:200]


def short_name(name: str | Path) -> str:
    """A name for a message: its beginning and its end if it has more than 80 characters."""
    text = str(name)
    return shown(text if len(text) <= 80 else f"{text[:30]}...{text[-47:]}")
