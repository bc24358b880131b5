"""Every page: the options of the commands on it and the settings that it names exist."""

import importlib
import re
import signal
from pathlib import Path

import pytest

from tacaf.child_processes import ROOT
from tacaf.command import EXIT_LOST_RANK, EXIT_STOPPED, INPUT, INTERRUPTED, PIPE, TERMINATED, UNEXPECTED
from tacaf.commands import COMMANDS
from tacaf.train.setting_list import sections
from tests.docs.pages import PAGES, blocks

SETTINGS = {name for section in sections() for name in (section.name, *(it.name for it in section.settings))}
TOP = sorted({name.partition(".")[0] for name in SETTINGS if "." in name})
# The last script of a line: those before it start it.
SCRIPT = re.compile(r".*\b(?P<path>(?:launch|perf)/(?:checks/)?\w+)\.py\b(?P<words>.*)")
MODULE = re.compile(r"python -m (?P<module>shards|tacaf\.evaluation)\b(?P<words>.*)")
TACAF = re.compile(r"(?:^|\s)tacaf (?P<name>[a-z]+)\b(?P<words>.*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
SETTING = re.compile(rf"(?<![\w./-])(?:{'|'.join(TOP)})\.[a-z_0-9]+(?:\.[a-z_0-9]+)*(?![\w/.]*\.(?:py|json|yaml|md))")
FILES = {"model.safetensors"}  # are written like settings
HISTORY = ("CHANGELOG", "ablation")  # name settings that there were


def code(page: Path) -> list[str]:
    """The commands and names on a page: lines of code blocks but Python's, and what the text has in backticks."""
    text = page.read_text()
    others = [block.text for block in blocks(page) if block.language != "python"]
    found = [line for text in others for line in text.replace("\\\n", " ").splitlines()]
    return found + re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def called(line: str) -> tuple[str, list[str], str] | None:
    """The module whose command a line calls, the words that choose its part, and the rest; None for other lines."""
    line = line.partition(" # ")[0]
    if found := MODULE.search(line):
        module, words = f"{found['module']}.__main__", found["words"]
    elif found := SCRIPT.search(line):
        module, words = found["path"].replace("/", "."), found["words"]
    elif (found := TACAF.search(line)) and found["name"] in COMMANDS:
        command = COMMANDS[found["name"]]
        module, words = command.module, f" {' '.join(command.words)} {found['words']}"
    else:
        return None
    parts = re.match(r"(?:\s+(?:pack|\w+))*", words) if module.endswith("__main__") else None
    return module, parts[0].split() if parts else [], words


def help_of(module: str, parts: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The help of the part of a command that these words choose; words that choose no part belong to the user."""
    main = importlib.import_module(module).main
    for count in range(len(parts), -1, -1):
        status = main([*parts[:count], "--help"])
        out = capsys.readouterr().out
        if status == 0:
            return out
    raise AssertionError(f"{module} has no help")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_exist_and_have_these_options(page, capsys):
    wrong = []
    for line in code(page):
        if (found := called(line)) is None:
            continue
        module, parts, words = found
        if not (ROOT / f"{module.replace('.', '/')}.py").is_file():
            wrong.append(f"{module}: {line}")
        elif options := OPTION.findall(words):
            known = ["--help", *OPTION.findall(help_of(module, parts, capsys))]
            wrong += [f"{option}: {line}" for option in options if option not in known]
    assert not wrong


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem not in HISTORY], ids=lambda page: page.stem)
def test_the_settings_exist(page):
    names = {name for line in code(page) for name in SETTING.findall(line)} - FILES
    assert not {name for name in names if name not in SETTINGS and not name.startswith("deepspeed.")}


def test_what_does_not_exist_is_noticed(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("```\ntacaf shards pack sysu_mm01 --rot X\n```\nand `train.epoch=3`, `model.cmaam`, `launch/x.py`")
    with pytest.raises(AssertionError, match="--rot"):
        test_the_commands_exist_and_have_these_options(page, capsys)
    with pytest.raises(AssertionError, match=r"train\.epoch"):
        test_the_settings_exist(page)


def test_every_exit_status_is_explained():
    table = (ROOT / "docs" / "troubleshooting.md").read_text().partition("## Exit statuses")[2].partition("\n## ")[0]
    explained = {int(number) for cell in re.findall(r"^\| ([\d, ]+) \|", table, re.M) for number in cell.split(",")}
    hung_up = 128 + signal.SIGHUP
    assert explained >= {0, UNEXPECTED, INPUT, PIPE, hung_up, INTERRUPTED, TERMINATED, EXIT_STOPPED, EXIT_LOST_RANK}


def test_every_path_on_the_architecture_page_exists():
    """A file without a folder lies in the folder that its paragraph named last."""
    text, missing = (ROOT / "docs" / "architecture.md").read_text(), []
    for line in re.split(r"\n(?=\d+\. |\n|\|)", text):
        folder = ""
        for path in re.findall(r"`([\w./-]+(?:\.py|/))`", line):
            found = path if "/" in path else folder + path
            folder = found.rpartition("/")[0] + "/"
            if not (ROOT / found).exists():
                missing.append(found)
    assert not missing
