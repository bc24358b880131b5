"""The method's page: every section that the code or a document cites is there."""

import re
import subprocess

import pytest

from tacaf.child_processes import ROOT

PAGE = ROOT / "docs" / "method.md"
CITED = re.compile(r"method(?:\.md)? §(\d+(?:\.\d+)*)(?:, §(\d+(?:\.\d+)*))*")
MORE = re.compile(r"§(\d+(?:\.\d+)*)")


def sections(text: str) -> set[str]:
    return set(re.findall(r"^#{2,3} (\d+(?:\.\d+)*)\.? ", text, flags=re.MULTILINE))


def missing(text: str) -> list[str]:
    """Sections that this text cites and the page does not have."""
    there = sections(PAGE.read_text())
    return [number for found in CITED.finditer(text) for number in MORE.findall(found[0]) if number not in there]


def test_every_cited_section_exists():
    listed = subprocess.run(["git", "ls-files", "*.py", "*.md", "*.yaml"], cwd=ROOT, capture_output=True, check=True)
    cited = 0
    for name in listed.stdout.decode().split():
        path = ROOT / name
        if path.suffix and path.exists() and path != ROOT / "tests/docs/test_method.py":
            text = path.read_text()
            cited += len(CITED.findall(text))
            assert not missing(text), name
    assert cited > 30, "the code cites the method"


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("method §4.1 and method §5", []),
        ("method §4.9", ["4.9"]),
        ("(method §1, §99; ours)", ["99"]),
        ("method §10", ["10"]),
    ],
)
def test_a_section_that_is_not_there_is_found(text, numbers):
    assert missing(text) == numbers
