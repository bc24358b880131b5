"""Errors of a configuration as one sentence: the key, what was expected, what was given, and a similar word."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from tacaf.documents import COMPLETE, plainly
from tacaf.files import shown
from tacaf.vocabulary import did_you_mean

MOST = 5  # mistakes that are listed; more are usually repetitions of the same one


def explain(error: ValidationError, model: type[BaseModel], values: Mapping[str, Any]) -> str:
    """The mistakes in `values`, which `model` refused, joined by semicolons."""
    mistakes = error.errors(include_url=False)
    texts = [_explain(item, model, values) for item in mistakes[:MOST]]
    return "; ".join(texts + ([f"and {len(mistakes) - MOST} more"] if len(mistakes) > MOST else []))


def only_in(error: ValidationError, values: Mapping[str, Any], keys: Iterable[str]) -> bool:
    """Whether every mistake in `values` is at one of these dotted keys, or below it."""
    names = [_place(item["loc"], values, item["type"]) for item in error.errors(include_url=False)]
    return all(any(name == key or name.startswith((f"{key}.", f"{key}[")) for key in keys) for name in names)


def _explain(error: Any, model: type[BaseModel], values: Mapping[str, Any]) -> str:
    where = _place(error["loc"], values, error["type"])
    if error["type"] == "extra_forbidden":
        keys = _keys(error["loc"], model)
        key = str(error["loc"][-1])
        elsewhere = f"; `launch/train.py --explain {shown(key[:60])}` looks in all sections"
        advice = did_you_mean(key, keys) or f"possible: {', '.join(keys)}{elsewhere}"
        return f"{where}: no such key; {advice}"
    if error["type"] == "missing":
        return f"{where}: expected a value, got none; set it in the file or with --set {where}=..."
    message = plainly(error["msg"])
    if error["type"] in (*COMPLETE, "kind"):
        return _joined(where, message) if where else message
    return f"{where}: {message}, got {_short(error['input'])}{_near(error)}"


def _joined(where: str, message: str) -> str:
    """`where` and the message. If a section's message begins with one of its keys, the key gets its full name."""
    key = re.match(r"[A-Za-z_][A-Za-z0-9_.\[\]]*: ", message)
    return f"{where}{'.' if key and not message.startswith(f'{where}.') else ': '}{message}"


def _place(location: tuple[Any, ...], values: Any, kind: str) -> str:
    """The dotted name of a value, such as `train.watch[0]`: the parts of the location that exist in the values."""
    name = ""
    for depth, part in enumerate(location):
        if isinstance(values, list | tuple) and isinstance(part, int) and part < len(values):
            name, values = f"{name}[{part}]", values[part]
        elif isinstance(values, Mapping) and (part in values or str(part) in values):
            name, values = _below(name, part), values[part] if part in values else values[str(part)]
        elif kind == "missing" and depth == len(location) - 1:
            name = _below(name, part)
    return name


def _below(name: str, part: Any) -> str:
    text = shown(str(part)[:60])
    return f"{name}.{text}" if name else text


def _keys(location: tuple[Any, ...], model: type[BaseModel]) -> list[str]:
    """The keys of the section that a location ends in."""
    section: Any = model
    for part in location[:-1]:
        if isinstance(section, type) and issubclass(section, BaseModel):
            section = section.model_fields[part].annotation if part in section.model_fields else None
        else:  # one of several sections, selected by its kind
            choices = [get_args(choice) for choice in get_args(section)]
            section = next((choice[0] for choice in choices if getattr(choice[-1], "tag", None) == part), None)
    return list(section.model_fields) if isinstance(section, type) and issubclass(section, BaseModel) else []


def _near(error: Any) -> str:
    """A suggestion, if the value had to be one of several words."""
    words = (
        re.findall(r"'([^']*)'", error.get("ctx", {}).get("expected", "")) if error["type"] == "literal_error" else []
    )
    advice = did_you_mean(str(error["input"]), words)
    return f"; {advice}" if advice else ""


def _short(value: Any) -> str:
    text = repr(value)
    return shown(text if len(text) <= 60 else text[:57] + "...")
