"""HTML from a template: every value is escaped, and names are shown as `tacaf.files.shown` shows them."""

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tacaf.files import shown


def render(template: Path, **values: Any) -> str:
    """The page of a template file. A value that the template names and nobody gives is an error."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, finalize=_displayed
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(**values)


def _displayed(value: Any) -> Any:
    """Text without characters that hide or turn round what stands there; its lines stay."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "\n".join(map(shown, value.split("\n")))
