"""Files and messages from outside, parsed once: JSON with limits into a typed model, and one clear error otherwise.

A `Document` has exact types (no booleans for numbers, no infinities), no unknown and no repeated keys. `parse` refuses
what is too long or too deep before it builds anything. A document that is hashed by nothing else carries a seal: the
hash of its own bytes, so that no changed byte goes unnoticed.
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
NO_SEAL = "0" * 64  # what a seal's hash is computed with in its place

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**53)]
# One component of a path that leads nowhere else: no separator, no leading dot, nothing that cannot be printed.
SafeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}$")]


class Document(BaseModel, extra="forbid", frozen=True, strict=True, allow_inf_nan=False):
    """The base of every model of something that is read from outside."""


Parsed = TypeVar("Parsed", bound=BaseModel)


def read_document(path: Path, model: type[Parsed], most: int = MOST_BYTES, cure: str = "") -> Parsed:
    """The document in a file. InputError names the file and the field that is wrong; `cure` says what to do."""
    return parse(read_bytes(path, most), model, shown(path), most, cure)


def parse(data: bytes | str, model: type[Parsed], where: str, most: int = MOST_BYTES, cure: str = "") -> Parsed:
    """The document in these bytes. `where` names their origin in the error.

    InputError for more than `most` bytes, for text that is not UTF-8 or not JSON or is nested more than MOST_DEPTH
    deep, for a repeated key or an infinity, and for whatever the model does not allow.
    """
    data = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    value = load_json(data, where, most, cure)
    try:
        # From the text and not from `value`, because JSON has no tuples and no enumerations to be strict about.
        # Strictness goes down into parts that are no Documents themselves, such as a configuration.
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
    """Made once, because that takes longer than to read a small document."""
    return json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refuse_constant, parse_float=_finite)


def what_is_wrong(error: ValidationError) -> str:
    """The first problem of a model's refusal: the field, what was expected, and what came."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    message = plainly(first["msg"])
    text = message if first["type"] in COMPLETE else f"{message}, got {_short(first['input'])}"
    return f"{shown(field)}: {text}" if field else text


# Kinds of refusal whose message says all there is to say.
COMPLETE = ("value_error", "missing", "too_short", "too_long", "extra_forbidden")
# Pydantic's words for what it expects, and ours.
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
    """A message of pydantic as we say it: "expected a whole number"."""
    message = message.removeprefix("Value error, ")
    if message.startswith("String should match pattern "):
        return message.replace("String should match pattern", "expected text of the form", 1)
    if not message.startswith("Input should be "):
        return message
    wanted = message.removeprefix("Input should be ")
    return "expected " + next((ours for theirs, ours in _PLAINER.items() if wanted.startswith(theirs)), wanted)


def seal(text: str) -> str:
    """The text of a document with its seal filled in: it must hold `"seal": "000..."` (64 zeros) exactly once."""
    found = hashlib.sha256(text.encode()).hexdigest()
    zeros = f'"seal": "{NO_SEAL}"'
    assert text.count(zeros) == 1
    return text.replace(zeros, f'"seal": "{found}"')


def check_seal(data: bytes, where: str, cure: str = "") -> None:
    """InputError if a byte of a sealed document has changed."""
    found = list(_SEAL.finditer(data))
    # The last one, since the seal is the last key; text before it may quote one.
    if found:
        start, stop = found[-1].span(2)
        if hashlib.sha256(data[:start] + NO_SEAL.encode() + data[stop:]).hexdigest().encode() == data[start:stop]:
            return
    raise InputError(f"{where}: its content does not match the hash it carries; a byte has changed{_cure(cure)}")


def _refuse_version(value: Any, model: type[BaseModel], where: str) -> None:
    """InputError for a document of this format in another version, whatever else it may hold."""
    formats, versions = (_literals(model, name) for name in ("format", "format_version"))
    if not isinstance(value, dict) or not formats or value.get("format") not in formats:
        return
    version = value.get("format_version")
    if isinstance(version, int) and not isinstance(version, bool) and version not in versions:
        known = " or ".join(map(str, versions))
        raise InputError(
            f"{where}: expected format_version {known}, got {_short(version)}; use the TACAF version that wrote it"
        )


def _refuse_look_alikes(value: Any, model: type[BaseModel], where: str, cure: str) -> None:
    """InputError for `true` or 1.0 where the model has the literal 1: to Python, and so to pydantic, they are equal."""
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
        raise ValueError(f"the key {_short(twice)} is given twice")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{_short(text)} is beyond every number")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


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
