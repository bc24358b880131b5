"""The list of all settings: name, type, default and description, read from the configuration classes.

`launch/train.py --explain` prints it, and docs/generate.py writes it into docs/configuration.md. No configuration file
is needed.
"""

import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Tag
from pydantic.fields import FieldInfo

from tacaf.files import shown
from tacaf.train.config import Config
from tacaf.vocabulary import InputError, did_you_mean

# Larger upper bounds only catch typing errors, so they are not part of a type's description.
LARGEST_BOUND = 10**6
REQUIRED = "required"


class Setting(NamedTuple):
    """One setting, as a user sees it. `default` is YAML, or REQUIRED."""

    name: str
    kind: str
    default: str
    text: str


class Section(NamedTuple):
    """The settings of one configuration class. `name` is empty for the top of the configuration.

    `choice` is the `kind: ...` that selects this section among several of the same name, otherwise empty.
    """

    name: str
    choice: str
    text: str
    settings: tuple[Setting, ...]

    @property
    def title(self) -> str:
        return f"{self.name} with {self.choice}" if self.choice else self.name


def sections() -> list[Section]:
    """Every section of a configuration, each before the sections inside it."""
    return list(_walk(Config, "", "", "", None))


def explain(name: str) -> str:
    """The description of the section or the setting `name`; of every setting if it is empty.

    Raises InputError if there is no such name.
    """
    parts = [part for section in sections() if (part := _inside(section, name)).settings]
    if not parts:
        names = sorted({known for section in sections() for known in _names(section)})
        last = [known for known in names if known.rpartition(".")[2] == name]  # "epochs" for "train.epochs"
        advice = did_you_mean(last[0] if last else name, names) or f"possible: {', '.join(Config.model_fields)}"
        raise InputError(f"--explain: expected a section or a setting, got {shown(name[:60])!r}; {advice}")
    return "\n\n".join(map(_as_text, parts))


def _inside(section: Section, name: str) -> Section:
    """The section with only those settings that are inside the section `name` or are the setting `name`."""
    inside = tuple(it for it in section.settings if not name or it.name == name or it.name.startswith(f"{name}."))
    return section._replace(settings=inside)


def _names(section: Section) -> Iterator[str]:
    yield section.name
    yield from (setting.name for setting in section.settings)


def _as_text(section: Section) -> str:
    lines = [f"{section.title}: {section.text}" if section.name else section.text]
    for setting in section.settings:
        lines += ["", f"  {setting.name}", f"      {setting.kind}; {_default(setting)}"]
        lines += textwrap.wrap(setting.text, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _default(setting: Setting) -> str:
    return setting.default if setting.default == REQUIRED else f"default: {setting.default}"


def _walk(model: type[BaseModel], name: str, choice: str, text: str, default: BaseModel | None) -> Iterator[Section]:
    """The section of a configuration class, then the sections inside it. `default`: its values if all have defaults."""
    own, inside = [], []
    for key, field in model.model_fields.items():
        below = f"{name}.{key}" if name else key
        value = getattr(default, key) if default is not None else _default_of(field)
        if choices := _choices(field):
            for kind, tag in choices:
                chosen = value if isinstance(value, kind) else None
                inside.append((kind, below, f"kind: {tag}" if tag else "", _sentence(field, kind, tag), chosen))
        else:
            own.append(
                Setting(below, type_text(field.annotation, field.metadata), _yaml(value), field.description or "")
            )
    yield Section(name, choice, text or _summary(model), tuple(own))
    for part in inside:
        yield from _walk(*part)


def _choices(field: FieldInfo) -> list[tuple[type[BaseModel], str]]:
    """The configuration classes that a field may contain, each with the `kind` that selects it; empty for a value."""
    if _is_section(field.annotation):
        return [(field.annotation, "")]  # type: ignore[list-item]
    found = []
    for choice in get_args(field.annotation):
        kind, *notes = get_args(choice) if get_origin(choice) is Annotated else (choice,)
        tag = next((note.tag for note in notes if isinstance(note, Tag)), "")
        if _is_section(kind):
            found.append((kind, tag))
    return found


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _sentence(field: FieldInfo, kind: type[BaseModel], tag: str) -> str:
    """The description of a section: the field's, or the class's if several classes share the field."""
    return _summary(kind) if tag or not field.description else field.description


def _summary(model: type[BaseModel]) -> str:
    """The first paragraph of a class's docstring, in one line."""
    return " ".join((model.__doc__ or "").split("\n\n")[0].split())


def _default_of(field: FieldInfo) -> Any:
    return ... if field.is_required() else field.get_default(call_default_factory=True)


def _yaml(value: Any) -> str:
    """A default as one line of YAML."""
    if value is ...:
        return REQUIRED
    text = yaml.safe_dump(_plain(value), default_flow_style=True, sort_keys=False, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(below) for key, below in value.items()}
    if isinstance(value, tuple):
        return [_plain(below) for below in value]
    return str(value) if isinstance(value, Path) else value


def type_text(kind: Any, notes: Iterable[Any] = ()) -> str:
    """A type in words: "whole number, at least 1". `notes` are the bounds, which pydantic keeps apart from the type."""
    if get_origin(kind) is Annotated:
        inner, *own = get_args(kind)
        bounds = [bound for note in own for bound in (note.metadata if isinstance(note, FieldInfo) else [note])]
        return type_text(inner, [*bounds, *notes])
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, types.UnionType):
        return ", or ".join(type_text(part, notes) for part in parts)
    if origin is Literal:
        return _either([_yaml(word) for word in parts])
    if origin is tuple:
        count = "" if parts[-1] is ... else f" of {len(parts)}"
        return f"list{count}, each {type_text(parts[0])}"
    if origin is dict:
        return f"mapping of {type_text(parts[0])} to {type_text(parts[1])}"
    return _SIMPLE[origin] + (_bounds(notes) if origin in (int, float) else "")


_SIMPLE = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
    type(None): "null",
    Any: "any value",
}


def _either(words: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _bounds(notes: Iterable[Any]) -> str:
    """The bounds of a number: ", at least 0, below 1"."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    found = [(text, getattr(note, name, None)) for name, text in words.items() for note in notes]
    return "".join(f", {text} {value}" for text, value in found if value is not None and abs(value) < LARGEST_BOUND)
