"""forked.py: a forked command is the command, and leaves nothing to the next one."""

import os
import signal
from pathlib import Path

import pytest

from tests.forked import ROOT, forkable, run_forked

pytestmark = pytest.mark.skipif(not forkable(["x.py"]), reason="nothing is forked on a machine with a GPU")

SCRIPT = """
import atexit, os, signal, sys

assert __name__ == "__main__"
print(os.getcwd(), sys.argv[1:], os.environ.get("GIVEN"), sys.stdin.read())
print("error", file=sys.stderr)
atexit.register(print, "cleaned up")
os.environ["LEFT"] = "behind"
if sys.argv[1] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def script(tmp_path) -> str:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return str(path)


def given(**more: str) -> dict[str, str]:
    return {**os.environ, **more}


@pytest.mark.parametrize("status", [0, 75])
def test_a_command_has_its_words_environment_status_and_clean_up(script, status):
    done = run_forked([script, str(status), "more"], given(GIVEN="this"))
    assert done.returncode == status
    assert done.stdout == f"{ROOT} {[str(status), 'more']} this \ncleaned up\n"
    assert done.stderr == "error\n"


def test_a_killed_command_has_the_status_of_its_signal_and_the_next_one_is_sound(script):
    assert run_forked([script, "kill"], given()).returncode == -signal.SIGKILL
    assert run_forked([script, "0"], given()).returncode == 0


def test_nothing_is_left_to_the_next_command(script, tmp_path):
    run_forked([script, "0"], given(GIVEN="this"))
    other = tmp_path / "other.py"
    other.write_text("import os; print(os.environ.get('GIVEN'), os.environ.get('LEFT'))")
    assert run_forked([str(other)], given()).stdout == "None None\n"


def test_a_module_is_a_command_too():
    done = run_forked(["-m", "tacaf.evaluation", "--help"], given())
    assert done.returncode == 0
    assert "python -m tacaf.evaluation" in done.stdout


def test_ranks_run_at_the_same_time_and_the_first_failure_is_the_status(tmp_path):
    meeting = tmp_path / "meeting.py"
    meeting.write_text(
        "import os, sys, time; from pathlib import Path; me = int(os.environ['RANK']); here = Path(__file__).parent\n"
        "(here / f'rank-{me}').touch()\n"
        "while not (here / f'rank-{1 - me}').exists(): time.sleep(.01)\n"
        "print(me); sys.exit(3 * me)"
    )
    done = run_forked([str(meeting)], given(RANK="0"), given(RANK="1"))
    assert (done.returncode, done.stdout) == (3, "0\n1\n")


def test_an_error_is_reported_by_python_itself(tmp_path):
    wrong = Path(tmp_path / "wrong.py")
    wrong.write_text("1 / 0")
    done = run_forked([str(wrong)], given())
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("ZeroDivisionError: division by zero")
