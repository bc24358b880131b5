"""A file directly in perf/ is a command, from any folder; and the GPU suite names modules and files that exist."""

import importlib
import re
from importlib.util import find_spec

import pytest

from perf.calls import cache, needs
from perf.calls.plan import CALLS
from tacaf.child_processes import ROOT

COMMANDS = sorted(path.stem for path in (ROOT / "perf").glob("*.py") if path.stem != "__init__")
PARTS = [part for call in CALLS.values() for part in call.parts]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_is_a_command_with_help(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert importlib.import_module(f"perf.{name}").main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage:")
    assert f'start("perf.{name}")' in (ROOT / "perf" / f"{name}.py").read_text()


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_a_part_of_a_call_names_modules_and_files_that_exist(part):
    for module, *words in part.commands:
        assert find_spec(module), module
        for word in (*words, *part.rehearsal, *part.needs):
            if re.fullmatch(r"[a-z_/]+/[a-z_0-9]+\.[a-z]+", word):
                assert (ROOT / word).is_file(), word


def test_what_a_call_carries_is_known():
    assert all(package in needs.NEEDS for call in CALLS.values() for package in call.packages)
    assert cache.GATHERED.is_relative_to(ROOT)


@pytest.mark.parametrize("path", sorted((ROOT / "perf").rglob("*.py")), ids=lambda path: path.stem)
def test_a_path_that_a_docstring_or_comment_names_exists(path):
    for name in re.findall(
        r"\b(?:perf|launch|tests|docs|kernels|tacaf)/[\w/.-]+\.(?:py|json|jsonl|md|yaml)\b", path.read_text()
    ):
        assert (ROOT / name).is_file() or "{" in name, f"{path.relative_to(ROOT)} names {name}"


def test_the_results_are_few_and_every_one_that_a_page_names_exists():
    results = [path for path in (ROOT / "perf" / "results").rglob("*") if path.is_file()]
    assert len(results) <= 58
    for page in sorted((ROOT / "docs").glob("*.md")):
        for name in re.findall(r"perf/results/[\w/.-]+\.(?:jsonl?|md|svg)\b", page.read_text()):
            assert (ROOT / name).is_file(), f"{page.name} names {name}"
