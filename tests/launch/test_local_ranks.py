"""local_ranks.py: several ranks of one machine end as the one that failed."""

import subprocess
import sys

import pytest

from launch import local_ranks
from tacaf.child_processes import child_environment

FAILS = """
import os, sys, time
if os.environ["RANK"] == "0":
    sys.exit("error: the only line") if sys.argv[1] == "text" else sys.exit(int(sys.argv[1]))
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("word", "status", "said"), [("2", 2, ""), ("75", 75, ""), ("text", 1, "error: the only line\n")]
)
def test_ranks_of_this_machine_end_with_the_status_of_the_one_that_failed(tmp_path, word, status, said):
    (tmp_path / "fails.py").write_text(FAILS)
    command = [sys.executable, local_ranks.__file__, "2", str(tmp_path / "fails.py"), word]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment())
    assert (done.returncode, done.stdout, done.stderr) == (status, "", said)


def test_no_ranks_without_a_number(capsys):
    for words in ([], ["2"], ["x", "y"], ["-1", "y"]):
        assert local_ranks.main(words) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_help_says_how_it_is_called(capsys):
    assert local_ranks.main(["--help"]) == 0
    assert "launch/local_ranks.py N SCRIPT" in capsys.readouterr().out
