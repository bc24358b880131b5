"""HTML pages from templates: every value is escaped, and invisible characters are made visible.

A template extends `base.html`, which defines the light and dark colours and the style that all pages share; it fills
the blocks `title`, `style` and `body`. A page is one file that loads nothing from elsewhere.
"""

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tacaf.files import shown

_BASE_FOLDER = Path(__file__).parent


def render(template: Path, **values: Any) -> str:
    """The page of a template file. A value that the template uses and `values` lacks is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, _BASE_FOLDER]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        finalize=_displayed,
    )
    return environment.get_template(template.name).render(**values)


def _displayed(value: Any) -> Any:
    """Text with its control characters and direction marks escaped (`tacaf.files.shown`), and its line breaks kept."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "\n".join(map(shown, value.split("\n")))
