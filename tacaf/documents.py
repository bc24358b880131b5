"""Parsing of files and messages from outside: JSON within limits becomes a typed model, or raises one clear error.

A `Document` has exact types (no booleans for numbers, no infinities), no unknown and no repeated keys. `parse` refuses
text that is too long or nested too deeply before it builds the model. A document whose hash is kept nowhere else has a
seal: the hash of its own bytes, so that every changed byte is noticed.
"""

import functools
import hashlib
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError

from tacaf.files import read_bytes, shown
from tacaf.vocabulary import InputError

MOST_BYTES = 2**20
MOST_DEPTH = 32
_SEAL = re.compile(rb'("seal": ")([0-9a-f]{64})(")')
NO_SEAL = "0" * 64  # in place of the seal while its hash is computed

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**53)]
# One component of a path that cannot lead elsewhere: no separator, no leading dot, only printable characters.
SafeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}$")]


class Document(BaseModel, extra="forbid", frozen=True, strict=True, allow_inf_nan=False):
    """The base class of everything that is read from outside."""


Parsed = TypeVar("Parsed", bound=BaseModel)


def read_document(path: Path, model: type[Parsed], most: int = MOST_BYTES, cure: str = "") -> Parsed:
    """The document in a file. Raises InputError with the file and the wrong field; `cure` says what to do."""
    return parse(read_bytes(path, most), model, shown(path), most, cure)


def parse(data: bytes | str, model: type[Parsed], where: str, most: int = MOST_BYTES, cure: str = "") -> Parsed:
    """The document in these bytes. `where` names their origin in errors, and `cure` says what to do.

    Raises InputError for more than `most` bytes, for text that is not UTF-8 or not JSON or is nested more than
    MOST_DEPTH deep, for a repeated key or an infinity, and for anything that the model does not allow.
    """
    data = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    value = load_json(data, where, most, cure)
    try:
        # From the text and not from `value`, because pydantic's strict mode accepts lists for tuples and text for
        # enumerations only in JSON. It applies to parts that are not Documents too, such as a configuration.
        found = model.model_validate_json(data, strict=True if issubclass(model, Document) else None)
        _refuse_look_alikes(value, model, where, cure)
        return found
    except ValidationError as error:
        _refuse_version(value, model, where)
        raise InputError(f"{where}: {what_is_wrong(error)}{_cure(cure)}") from None


def load_json(data: bytes, where: str, most: int = MOST_BYTES, cure: str = "") -> Any:
    """The JSON value in these bytes, within the limits of `parse`."""
    if len(data) > most:
        raise InputError(f"{where} has {len(data):,} bytes; at most {most:,} are read")
    try:
        value = _decoder().decode(data.decode())
    except RecursionError:
        raise InputError(f"{where}: nested too deeply{_cure(cure)}") from None
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON ({shown(error)}){_cure(cure)}") from None
    if _too_deep(value):
        raise InputError(f"{where}: nested more than {MOST_DEPTH} levels deep{_cure(cure)}")
    return value


@functools.cache
def _decoder() -> json.JSONDecoder:
    """The decoder, built once, because building it takes longer than decoding a small document."""
    return json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refuse_constant, parse_float=_finite)


def what_is_wrong(error: ValidationError) -> str:
    """The first problem of a validation error: the field, what was expected, and what was found."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    message = plainly(first["msg"])
    text = message if first["type"] in COMPLETE else f"{message}, got {_short(first['input'])}"
    return f"{shown(field)}: {text}" if field else text


# Kinds of errors whose message needs no ", got ...".
COMPLETE = ("value_error", "missing", "too_short", "too_long", "extra_forbidden")
# Pydantic's terms for what it expects, and ours.
_PLAINER = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid string": "text",
    "a valid list": "a list",
    "a valid tuple": "a list",
    "a valid dictionary": "a mapping",
    "an instance of Path": "a path",
    "a finite number": "a finite number",
}


def plainly(message: str) -> str:
    """A message of pydantic in our terms, such as "expected a whole number"."""
    message = message.removeprefix("Value error, ")
    if message.startswith("String should match pattern "):
        return message.replace("String should match pattern", "expected text of the form", 1)
    if not message.startswith("Input should be "):
        return message
    kind = message.removeprefix("Input should be ")
    return "expected " + next((ours for theirs, ours in _PLAINER.items() if kind.startswith(theirs)), kind)


def seal(text: str) -> str:
    """The text of a document with its seal filled in. It must contain `"seal": "000..."` (64 zeros) exactly once."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    zeros = f'"seal": "{NO_SEAL}"'
    assert text.count(zeros) == 1
    return text.replace(zeros, f'"seal": "{digest}"')


def check_seal(data: bytes, where: str, cure: str = "") -> None:
    """Raise InputError if a byte of a sealed document has changed."""
    found = list(_SEAL.finditer(data))
    # The seal is the last key; text before it may quote another one.
    if found:
        start, stop = found[-1].span(2)
        if hashlib.sha256(data[:start] + NO_SEAL.encode() + data[stop:]).hexdigest().encode() == data[start:stop]:
            return
    raise InputError(f"{where}: its content does not match the hash in it; a byte has changed{_cure(cure)}")


def _refuse_version(value: Any, model: type[BaseModel], where: str) -> None:
    """Raise InputError for a document of this format in another version, whatever else is in it."""
    formats, versions = (_literals(model, name) for name in ("format", "format_version"))
    if not isinstance(value, dict) or not formats or value.get("format") not in formats:
        return
    version = value.get("format_version")
    if isinstance(version, int) and not isinstance(version, bool) and version not in versions:
        known = " or ".join(map(str, versions))
        raise InputError(
            f"{where}: expected format_version {known}, got {_short(version)}; use the version of TACAF that wrote it"
        )


def _refuse_look_alikes(value: Any, model: type[BaseModel], where: str, cure: str) -> None:
    """Raise InputError for `true` or 1.0 where the model has the literal 1, because Python finds them equal."""
    for name, got in value.items() if isinstance(value, dict) else ():
        kinds = {type(one) for one in _literals(model, name)}
        if kinds and type(got) not in kinds:
            expected = " or ".join(map(repr, _literals(model, name)))
            raise InputError(f"{where}: {name}: expected {expected}, got {_short(got)}{_cure(cure)}")


def _literals(model: type[BaseModel], name: str) -> tuple[Any, ...]:
    field = model.model_fields.get(name)
    kind = None if field is None else field.annotation
    return get_args(kind) if getattr(kind, "__origin__", None) is Literal else ()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {_short(twice)} occurs twice")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{_short(text)} is too large for a number")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number in JSON")


def _too_deep(value: Any) -> bool:
    level, depth = [value], 0
    while level := [
        below
        for above in level
        if isinstance(above, dict | list)
        for below in (above.values() if isinstance(above, dict) else above)
        if isinstance(below, dict | list)
    ]:
        depth += 1
        if depth >= MOST_DEPTH:
            return True
    return False


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "a huge number"
    return shown(text if len(text) <= 60 else text[:57] + "...")


def _cure(text: str) -> str:
    return f"; {text}" if text else ""
