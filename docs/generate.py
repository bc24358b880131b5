"""Writes what is generated in docs/, a list of settings and a drawing: python docs/generate.py [--check]

With --check it writes nothing, and exits with status 1 if a file is not up to date.
"""

import argparse
import html
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from docs import ipcam_graph  # noqa: E402
from tacaf.command import Parser  # noqa: E402
from tacaf.files import write_whole  # noqa: E402
from tacaf.train.setting_list import REQUIRED, Section, Setting, sections  # noqa: E402

PAGE = ROOT / "docs" / "configuration.md"
GRAPH = ROOT / "docs" / "ipcam_graph.svg"
MARK = "<!-- Below this line, docs/generate.py writes what the configuration classes say. -->\n"


def generated() -> dict[Path, str]:
    """Each file and what it should hold."""
    return {PAGE: configuration(PAGE.read_text()), GRAPH: ipcam_graph.drawing()}


def configuration(page: str) -> str:
    """The page with a new list of settings. What is written by hand, up to the mark, is kept."""
    by_hand, mark, _ = page.partition(MARK)
    assert mark, f"{PAGE.name} has lost the line {MARK!r}"
    return by_hand + MARK + "".join(f"\n{part}" for part in map(_section, sections()))


def _section(section: Section) -> str:
    rows = [f"| `{it.name}` | {_cell(it.kind)} | {_default(it)} | {_cell(it.text)} |" for it in section.settings]
    title = f"`{section.name}`" + (f" with `{section.choice}`" if section.choice else "")
    lines = [f"## {title if section.name else 'Top of the file'}", "", _cell(section.text), ""]
    return "\n".join([*lines, "| setting | type | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


def _default(setting: Setting) -> str:
    return "*required*" if setting.default == REQUIRED else f"`{setting.default}`"


def _cell(text: str) -> str:
    """Plain text for a table: no letter of it is taken for Markdown or HTML."""
    return html.escape(text, quote=False).replace("*", "\\*").replace("|", "\\|")


if __name__ == "__main__":
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether the files are up to date")
    args = parser.parse_args()
    for path, new in generated().items():
        old = path.read_text() if path.exists() else ""
        if args.check and new != old:
            sys.exit(f"{path.relative_to(ROOT)} is not up to date; run python docs/generate.py")
        if not args.check:
            write_whole(path, new)
