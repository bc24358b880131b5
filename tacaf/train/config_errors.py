"""What a configuration class refuses, as one sentence: the key, what was expected, what came, and what is near."""

import re
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from tacaf.documents import COMPLETE, plainly
from tacaf.files import shown
from tacaf.vocabulary import did_you_mean

MOST = 5  # mistakes that are told of; whoever has more makes the same one again and again


def explain(error: ValidationError, model: type[BaseModel], values: Mapping[str, Any]) -> str:
    """Every mistake, one after the other, in `values` that `model` refused."""
    found = error.errors(include_url=False)
    told = [_explain(item, model, values) for item in found[:MOST]]
    return "; ".join(told + ([f"and {len(found) - MOST} more"] if len(found) > MOST else []))


def _explain(error: Any, model: type[BaseModel], values: Mapping[str, Any]) -> str:
    where = _place(error["loc"], values, error["type"])
    if error["type"] == "extra_forbidden":
        keys = _keys(error["loc"], model)
        advice = did_you_mean(str(error["loc"][-1]), keys) or f"possible: {', '.join(keys)}"
        return f"{where}: no such key; {advice}"
    if error["type"] == "missing":
        return f"{where}: expected a value, got none; set it in the file or with --set {where}=..."
    message = plainly(error["msg"])
    if error["type"] in (*COMPLETE, "kind"):
        return _joined(where, message) if where else message
    return f"{where}: {message}, got {_short(error['input'])}{_near(error)}"


def _joined(where: str, message: str) -> str:
    """A section's message that begins with one of its keys, `stage: expected ...`, gets the key's whole name."""
    key = re.match(r"[A-Za-z_][A-Za-z0-9_.\[\]]*: ", message)
    return f"{where}{'.' if key and not message.startswith(f'{where}.') else ': '}{message}"


def _place(location: tuple[Any, ...], values: Any, kind: str) -> str:
    """The dotted name of a place, `train.watch[0]`: what of the location leads somewhere in the values."""
    name = ""
    for at, part in enumerate(location):
        if isinstance(values, list | tuple) and isinstance(part, int) and part < len(values):
            name, values = f"{name}[{part}]", values[part]
        elif isinstance(values, Mapping) and (part in values or str(part) in values):
            name, values = _below(name, part), values[part] if part in values else values[str(part)]
        elif kind == "missing" and at == len(location) - 1:
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
        else:  # one of several sections, and which by its kind
            chosen = [get_args(choice) for choice in get_args(section)]
            section = next((found[0] for found in chosen if getattr(found[-1], "tag", None) == part), None)
    return list(section.model_fields) if isinstance(section, type) and issubclass(section, BaseModel) else []


def _near(error: Any) -> str:
    """What may have been meant, where the choice is between words."""
    words = (
        re.findall(r"'([^']*)'", error.get("ctx", {}).get("expected", "")) if error["type"] == "literal_error" else []
    )
    advice = did_you_mean(str(error["input"]), words)
    return f"; {advice}" if advice else ""


def _short(value: Any) -> str:
    text = repr(value)
    return shown(text if len(text) <= 60 else text[:57] + "...")
