"""`pytest --quick`: what starts a process is left out or refused, and nothing else."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CASES = """
import subprocess
import sys

import pytest

from tacaf.child_processes import child_environment


def start():
    subprocess.run([sys.executable, "--version"], check=True)


@pytest.fixture
def started():
    start()


def test_plain():
    assert child_environment()


def test_by_a_function():
    start()


def test_by_a_fixture(started):
    pass


@pytest.mark.slow
def test_marked():
    pass


@pytest.mark.parametrize("value", [1, pytest.param(2, marks=pytest.mark.long)])
def test_one_long_case(value):
    pass


def test_in_the_code_under_test():
    from multiprocessing import Process  # hidden, as in the code under test

    Process(target=print).start()
"""


def test_what_starts_a_process_is_left_out_or_refused(tmp_path):
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_case.py").write_text(CASES)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow\n    long\n")
    words = [
        "-p",
        "tests.quick",
        "--quick",
        "-v",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--import-mode=importlib",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("tests/test_case.py::")]
    found = {test.partition("::")[2]: outcome for test, outcome, *_ in lines}
    assert found == {
        "test_plain": "PASSED",
        "test_one_long_case[1]": "PASSED",
        "test_in_the_code_under_test": "FAILED",
    }, done.stdout + done.stderr
    assert "without the mark `slow` starts a process" in done.stdout
