"""The pages that users read, and the code blocks on them."""

import re
from pathlib import Path
from typing import NamedTuple

from tacaf.child_processes import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A code block: the word behind its fence, which may be empty, and its text."""

    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page, in order."""
    return [Block(*found) for found in _BLOCK.findall(page.read_text())]
