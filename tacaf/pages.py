"""HTML from a template: every value is escaped, and names are shown as `tacaf.files.shown` shows them.

A template extends `base.html`, which has the colours, light and dark, and the style that all pages share; it fills the
blocks `title`, `style` and `body`. A page is one file that loads nothing from elsewhere.
"""

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tacaf.files import shown

_BASE_FOLDER = Path(__file__).parent


def render(template: Path, **values: Any) -> str:
    """The page of a template file. It is an error if the template names a value that is not given."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, _BASE_FOLDER]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        finalize=_displayed,
    )
    return environment.get_template(template.name).render(**values)


def _displayed(value: Any) -> Any:
    """Text without characters that hide or turn round what follows; its line breaks stay."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "\n".join(map(shown, value.split("\n")))
