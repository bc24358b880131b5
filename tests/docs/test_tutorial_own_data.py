"""docs/tutorial_own_data.md: every file and every command on the page, in order, on a procedural set."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tacaf.child_processes import ROOT, child_environment
from tests.docs.pages import blocks
from tests.processes import LIMIT_S

PAGE = ROOT / "docs" / "tutorial_own_data.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the folder of the repository has of what the page names, and nothing else."""
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    return tmp_path


def environment() -> dict[str, str]:
    """An activated environment: its `python` and `tacaf` come first."""
    return child_environment() | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def run(command: str, folder: Path) -> str:
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment(), capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, f"{command}: status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def serve(command: str, folder: Path) -> str:
    """Start the page, ask it for its first document, and end it. The port is any free one."""
    words = command.replace("--port 7860", "--port 0").split()
    process = subprocess.Popen(words, cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        with urllib.request.urlopen(address_of(process), timeout=LIMIT_S) as answer:
            return answer.read().decode()
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LIMIT_S)


def address_of(process: subprocess.Popen) -> str:
    """The address that the page prints once it can be opened."""
    for line in process.stdout:
        if found := re.search(r"http://\S+", line):
            return found[0]
    pytest.fail(f"the page ended with status {process.wait()}")


@pytest.mark.slow
def test_every_command_on_the_page_works(folder):
    said = {}
    for language, text in blocks(PAGE):
        if language == "bash":
            for command in text.replace("\\\n", "").splitlines():
                said[command] = (serve if command.startswith("tacaf page") else run)(command, folder)
        else:
            name = re.match(r"# (\S+)\n", text)
            assert name is not None, "a block that is a file begins with its name"
            (folder / name[1]).write_text(text)
    assert len(said) > 12
    mine = folder / "mine"
    assert (mine / "rehearsal" / "report.html").stat().st_size > 10_000
    for search in ("visible_to_infrared", "infrared_to_visible", "infrared_to_infrared"):
        assert len(list((mine / "rehearsal" / "results").glob(f"generic-{search}*.json"))) == 1
    assert "<img" in (mine / "found.html").read_text()
    found = json.loads((mine / "found.json").read_text())
    assert found["gallery_images"] == len(list((mine / "photos" / "cam1").rglob("*.jpg")))
    assert len(found["queries"]) == len(list((mine / "photos" / "cam3").rglob("*.jpg")))
    names = run("tacaf search --index mine/people.index --list", folder)
    assert "0002/" in names
    assert "0003/" not in names
    assert json.loads((mine / "shards" / "index.json").read_text())["removed"]["pids"] == [3]
    page = next(text for command, text in said.items() if command.startswith("tacaf page"))
    assert "<html" in page
