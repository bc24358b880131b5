"""The base of every configuration class: exact types and finite numbers, from YAML, from JSON or from Python.

Values are converted only where YAML and JSON have no way to write the type: a list becomes a tuple, text becomes a
path, text keys of a mapping become whole numbers, and 1e-3, which YAML takes for text, becomes a number.
"""

import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ValidationInfo, field_validator

from tacaf.files import path_of
from tacaf.vocabulary import InputError

LARGEST = 1e30  # the limit of a rate or a weight; products with larger ones overflow float32
_POWER_OF_TEN = re.compile(r"[-+]?(\d{1,40}(\.\d{0,40})?|\.\d{1,40})[eE][-+]?\d{1,3}")
_WHOLE = re.compile(r"-?\d{1,18}")


class Settings(BaseModel, extra="forbid", frozen=True, strict=True, allow_inf_nan=False):
    """A section of a configuration. Booleans and text are not accepted as numbers, nor fractions as whole numbers."""

    @field_validator("*", mode="before")
    @classmethod
    def _typed(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        return _as_typed(cls.model_fields[info.field_name].annotation, value)


def _existing_user(path: Path) -> Path:
    try:
        return path_of(str(path))
    except InputError as error:
        raise ValueError(str(error)) from None


UserPath = Annotated[Path, AfterValidator(_existing_user)]  # `~` is expanded when the configuration is read


def _as_typed(kind: Any, value: Any) -> Any:
    """The value converted to `kind` if YAML or JSON has no way to write that type; otherwise the value unchanged."""
    if get_origin(kind) is Annotated:
        return _as_typed(get_args(kind)[0], value)
    if get_origin(kind) in (Union, types.UnionType):
        for choice in get_args(kind):
            converted = _as_typed(choice, value)
            if converted is not value:
                return converted
        return value
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if isinstance(value, list) and origin is tuple:
        each = [parts[0]] * len(value) if parts[-1:] == (...,) else parts
        if len(each) != len(value):
            raise ValueError(f"expected a list of {len(each)}, got one of {len(value)}")
        return tuple(map(_as_typed, each, value))
    if isinstance(value, Mapping) and origin is dict:
        return {_key(parts[0], key): _as_typed(parts[1], below) for key, below in value.items()}
    if isinstance(value, str):
        if origin is Path:
            return _path(value)
        if origin is float and _POWER_OF_TEN.fullmatch(value):
            return float(value)
    return value


def _key(kind: Any, key: Any) -> Any:
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return int(key) if kind is int and isinstance(key, str) and _WHOLE.fullmatch(key) else key


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError(f"expected a path, got {text!r}")
    return Path(text)
