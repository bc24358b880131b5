"""Child processes import the source tree first and still find what only their parent's PYTHONPATH holds."""

import os
import subprocess
import sys

import pytest

from launch.study import trainings
from tacaf.child_processes import ROOT, child_environment


@pytest.fixture
def carried(tmp_path, monkeypatch):
    """A package in a folder that only PYTHONPATH names, beside one that would hide the project's."""
    (tmp_path / "carried_package.py").write_text("")
    (tmp_path / "tacaf").mkdir()
    (tmp_path / "tacaf" / "__init__.py").write_text("raise AssertionError('the wrong tacaf')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


SCRIPT = "import carried_package, tacaf.vocabulary; print('both')"


def test_a_child_finds_the_tree_and_the_callers_packages(carried):
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=carried.parent, env=child_environment(), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("both\n", "")


@pytest.mark.slow
def test_a_training_started_by_a_study_does_too(carried):
    class Imports(trainings.Training):
        def command(self, ranks):
            return [sys.executable, "-c", SCRIPT]

        def begun(self):
            return False

    statuses = []
    one = Imports(carried / "out" / "run", carried, ())
    assert trainings.run_all([one], lambda _, status: statuses.append(status), environment={"ANY": "1"})
    assert statuses == [0]


def test_variables_are_added_and_the_tree_is_named_once(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), "/packages", ""]))
    environment = child_environment(OMP_NUM_THREADS="1")
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["PYTHONPATH"] == os.pathsep.join([str(ROOT), "/packages"])
