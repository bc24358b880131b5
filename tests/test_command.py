"""The entry of every command, in processes of their own: signals at any moment, streams of any kind, any error."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tacaf.command import INPUT, INTERRUPTED, PIPE, TERMINATED, UNEXPECTED, Parser, entry, to_path
from tacaf.files import write_whole
from tacaf.vocabulary import InputError
from tests.processes import LIMIT_S, wait_until

ROOT = Path(__file__).parent.parent
HUNG_UP = 128 + signal.SIGHUP

COMMAND = """
from tacaf.start import start
if __name__ == "__main__":
    start("command_of_test")
{slow_import}
import os, sys, time
from pathlib import Path
from tacaf.command import entry
from tacaf.files import whole_file, whole_folder
from tacaf.vocabulary import InputError

@entry()
def main(argv=None):
{body}
    return 0
"""


@pytest.fixture
def begin(tmp_path):
    """Starts a command with this body; `slow_import`: a statement before its other imports; `module`: by `-m`."""
    begun = []

    def start(body: str, slow_import: str = "", words: tuple = (), module: bool = False, **options) -> subprocess.Popen:
        script = tmp_path / "command_of_test.py"
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        script.write_text(COMMAND.format(slow_import=slow_import, body=lines))
        own = {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
        environment = {**os.environ, **own, **options.pop("env", {})}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        named = ["-m", script.stem] if module else [script]
        begun.append(subprocess.Popen([sys.executable, *named, *words], cwd=tmp_path, env=environment, **pipes))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    """Status, output, and what was said of errors."""
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, (out or b"").decode("utf-8", "replace"), (err or b"").decode("utf-8", "replace")


def one_line(text: str) -> str:
    assert text.startswith("error: ")
    assert text.endswith("\n")
    assert text.count("\n") == 1
    return text.removeprefix("error: ").rstrip("\n")


WAIT = """
with whole_file(Path("out")) as file, whole_folder(Path("folder")) as folder:
    (folder / "inside").touch()
    Path("ready").touch()
    while True:
        time.sleep(0.01)
"""


@pytest.mark.parametrize(
    ("number", "status", "words"),
    [
        (signal.SIGINT, INTERRUPTED, "interrupted"),
        (signal.SIGTERM, TERMINATED, "terminated"),
        (signal.SIGHUP, HUNG_UP, "terminated"),
    ],
)
@pytest.mark.parametrize("times", [1, 5])
def test_a_signal_is_one_line_and_leaves_nothing(begin, tmp_path, number, status, words, times):
    process = begin(WAIT)
    wait_until((tmp_path / "ready").exists, process)
    for _ in range(times):
        process.send_signal(number)
    assert ended(process) == (status, "", f"error: {words}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["command_of_test.py", "ready"]


TRANSLATES = """
try:
    Path("ready").touch()
    time.sleep(100)
except BaseException:
    raise ValueError("the shape of something") from None
"""
EXECUTES = """
exec("Path('ready').touch(); time.sleep(100)")
"""


@pytest.mark.parametrize(("number", "status", "words"), [(2, 130, "interrupted"), (15, 143, "terminated")])
@pytest.mark.parametrize("body", [TRANSLATES, EXECUTES], ids=["another error", "executed text"])
def test_a_signal_in_the_middle_of_a_library(begin, tmp_path, body, number, status, words):
    """Some libraries turn every exception into their own error. And under `-m`, Python kills itself with SIGINT if a
    KeyboardInterrupt interrupted an `exec`, even if it was caught."""
    process = begin(body, module=True)
    wait_until((tmp_path / "ready").exists, process)
    process.send_signal(number)
    assert ended(process) == (status, "", f"error: {words}\n")


CLEANS_UP_SLOWLY = """
try:
    Path("ready").touch()
    time.sleep(100)
finally:
    Path("cleaning").touch()
    time.sleep(0.5)
    Path("cleaned").touch()
"""


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_disturb_the_cleaning_up(begin, tmp_path, second):
    process = begin(CLEANS_UP_SLOWLY)
    wait_until((tmp_path / "ready").exists, process)
    process.send_signal(signal.SIGINT)
    wait_until((tmp_path / "cleaning").exists, process)
    process.send_signal(second)
    assert ended(process) == (INTERRUPTED, "", "error: interrupted\n")
    assert (tmp_path / "cleaned").exists()


def test_a_cleaning_up_that_hangs_can_be_ended(begin, tmp_path):
    body = CLEANS_UP_SLOWLY.replace("time.sleep(0.5)", "time.sleep(100)")
    process = begin("import tacaf.command\ntacaf.command.PATIENCE_S = 0.0" + body)
    wait_until((tmp_path / "ready").exists, process)
    process.send_signal(signal.SIGINT)
    wait_until((tmp_path / "cleaning").exists, process)
    process.send_signal(signal.SIGINT)
    assert ended(process) == (INTERRUPTED, "", "error: interrupted\n")


SWALLOWS = """
import time, pathlib
pathlib.Path("ready").touch()
for _ in range(10_000):
    try:
        time.sleep(0.01)
    except:
        pass
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)])
def test_a_signal_while_a_library_is_loaded_that_swallows_every_exception(begin, tmp_path, number, status):
    process = begin("pass", slow_import=SWALLOWS)
    wait_until((tmp_path / "ready").exists, process)
    process.send_signal(number)
    code, out, err = ended(process)
    assert (code, out) == (status, "")
    assert one_line(err) in ("interrupted", "terminated")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_interpreter_ends_keeps_the_status(begin, tmp_path, number):
    body = """
import atexit
def slow():
    Path("ready").touch()
    time.sleep(100)
atexit.register(slow)
print("the result")
"""
    process = begin(body)
    wait_until((tmp_path / "ready").exists, process)
    process.send_signal(number)
    assert ended(process) == (0, "the result\n", "")


@pytest.mark.parametrize("tries", [6, pytest.param(60, marks=pytest.mark.long)])
def test_signals_at_random_moments(begin, tmp_path, tries):
    """From the end of the first import on: before it, Python itself answers, and nothing is open."""
    body = """
for number in range(200):
    with whole_file(Path(f"out-{number % 3}")) as file:
        file.write(bytes(10_000))
print("done")
"""
    draw = random.Random(0)
    for _ in range(tries):
        process = begin(body, slow_import="import pathlib; pathlib.Path('ready').touch(); import json, decimal")
        wait_until((tmp_path / "ready").exists, process)
        time.sleep(draw.uniform(0, 0.2))
        process.send_signal(draw.choice([signal.SIGINT, signal.SIGTERM]))
        status, out, err = ended(process)
        assert status in (0, INTERRUPTED, TERMINATED)
        assert (out, err) == ("done\n", "") if status == 0 else one_line(err) in ("interrupted", "terminated")
        assert not list(tmp_path.glob(".out*"))
        (tmp_path / "ready").unlink()


def test_a_signal_at_the_very_end_keeps_the_status(begin, tmp_path):
    """When nothing but the interpreter's own taking apart is left."""
    body = """
class Last:
    def __del__(self, make=os.mkdir, sleep=time.sleep):
        make("ready")
        sleep(0.5)
sys.last = Last()
"""
    process = begin(body)
    wait_until((tmp_path / "ready").exists, process)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (0, "", "")


def test_signals_that_are_ignored_stay_ignored(begin, tmp_path):
    """As `nohup` and a shell's background jobs ask for."""
    body = "Path('ready').touch()\nwhile not Path('go').exists():\n    time.sleep(0.01)\nprint('done')"
    process = begin(body, preexec_fn=lambda: [signal.signal(n, signal.SIG_IGN) for n in (signal.SIGHUP, signal.SIGINT)])
    wait_until((tmp_path / "ready").exists, process)
    for number in (signal.SIGHUP, signal.SIGINT):
        process.send_signal(number)
    (tmp_path / "go").touch()
    assert ended(process) == (0, "done\n", "")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_of_several_ranks_the_first_speaks(begin, tmp_path, rank):
    process = begin(WAIT, env={"RANK": rank})
    wait_until((tmp_path / "ready").exists, process)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (TERMINATED, "", "error: terminated\n" if rank == "0" else "")


def test_what_all_ranks_refuse_one_says(begin):
    for rank, said in (("0", "error: all of us\n"), ("1", "")):
        assert ended(begin("raise InputError('all of us', shared=True)", env={"RANK": rank})) == (INPUT, "", said)
    assert ended(begin("raise InputError('only me')", env={"RANK": "1"})) == (INPUT, "", "error: only me\n")


@pytest.mark.parametrize(
    ("statement", "status", "says"),
    [
        ("raise InputError('expected A, got B')", INPUT, "expected A, got B"),
        ("raise InputError('first line\\n second;\\n\\nthird')", INPUT, "first line; second; third"),
        ("raise InputError('a name \\x1b[31m \\u202e')", INPUT, "a name \\x1b[31m \\u202e"),
        ("open('no/such')", INPUT, "no/such: no such file or directory"),
        ("open('.')", INPUT, ".: is a directory"),
        ("os.rename('no-such', 'b')", INPUT, "no-such and b: no such file or directory"),
        ("open(os.fsdecode(b'\\xff'))", INPUT, "\\xff: no such file or directory"),
        ("open('x' * 5000)", INPUT, "x" * 5000 + ": file name too long"),
        ("raise MemoryError", INPUT, "out of memory; use a smaller batch or less data, or a machine with more memory"),
        ("bytes(10 ** 18)", INPUT, "out of memory; use a smaller batch or less data, or a machine with more memory"),
        (
            "raise RuntimeError('DefaultCPUAllocator: can\\'t allocate memory: 1')",
            INPUT,
            "out of memory; use a smaller batch or less data, or a machine with more memory",
        ),
        (
            "raise type('OutOfMemoryError', (RuntimeError,), {})('CUDA')",
            INPUT,
            "out of memory; use a smaller batch or less data, or a machine with more memory",
        ),
        ("raise SystemExit('error: no figure')", UNEXPECTED, "no figure"),
    ],
)
def test_errors_that_are_expected(begin, statement, status, says):
    assert ended(begin(statement)) == (status, "", f"error: {says}\n")


def test_notes_follow_the_error(begin):
    body = "error = InputError('x')\nerror.add_note('3 parts are kept')\nraise error"
    assert ended(begin(body)) == (INPUT, "", "error: x; 3 parts are kept\n")


@pytest.mark.parametrize("where", ["main", "import"])
@pytest.mark.parametrize("text", ["what now", "two\\nlines", "", "\\u202e\\x1b", "x" * 1000])
def test_an_unexpected_error_is_one_line_and_a_file(begin, tmp_path, where, text):
    statement = f"raise ZeroDivisionError('{text}')"
    process = begin(statement) if where == "main" else begin("pass", slow_import=statement)
    status, out, err = ended(process)
    assert (status, out) == (UNEXPECTED, "")
    said = one_line(err)
    assert "ZeroDivisionError" in said
    assert "CONTRIBUTING.md" in said
    [file] = tmp_path.glob("tacaf-error-*.txt")
    assert str(file) in said
    assert "Traceback" in file.read_text()
    assert file.stat().st_mode & 0o077 == 0


def test_an_unexpected_error_without_a_place_for_its_traceback(begin):
    body = "import tempfile\ntempfile.tempdir = '/no/such'\nraise ZeroDivisionError"
    status, _, err = ended(begin(body))
    assert status == UNEXPECTED
    assert "ZeroDivisionError" in one_line(err)


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["ascii", "C"],
)
def test_a_terminal_without_unicode_gets_its_output(begin, tmp_path, environment):
    body = "print('1 ± 2')\nprint(os.fsdecode(b'\\xff'))\nraise InputError('3 ± 4')"
    status, out, err = ended(begin(body, env=environment))
    assert (status, err) == (INPUT, "error: 3 \\xb1 4\n")
    assert out == "1 \\xb1 2\n\\udcff\n"


def test_a_reader_that_went_away(begin, tmp_path):
    for body in ("for _ in range(100_000):\n    print('x' * 100)", "print('once')"):
        process = begin("while not Path('go').exists():\n    time.sleep(0.01)\n" + body)
        process.stdout.close()
        (tmp_path / "go").touch()
        assert process.wait(LIMIT_S) == PIPE
        assert process.stderr.read() == b""
        (tmp_path / "go").unlink()


def test_help_for_a_reader_that_went_away(begin):
    reading, writing = os.pipe()
    os.close(reading)
    body = "from tacaf.command import Parser\nParser().parse_args(argv)"
    process = begin(body, words=("--help",), stdout=writing)
    os.close(writing)
    status, _, err = ended(process)
    assert status in (0, PIPE)
    assert err == ""


def test_an_output_on_a_full_disk(begin):
    with open("/dev/full", "w") as full:
        status, _, err = ended(begin("print('result')", stdout=full))
    assert status == INPUT
    assert "no space left on device" in one_line(err)


def test_errors_that_nobody_reads(begin):
    reading, writing = os.pipe()
    os.close(reading)
    with open("/dev/full", "w") as full:
        for stream in (writing, full):
            assert ended(begin("print('out')\nraise InputError('x')", stderr=stream))[:2] == (INPUT, "out\n")
    os.close(writing)


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams_do_not_become_the_first_file(begin, tmp_path, closed):
    body = """
with whole_file(Path("out")) as file:
    os.write(1, b"of a library")
    os.write(2, b"of a library")
    print("for nobody")
    file.write(b"the result")
raise InputError("x")
"""
    process = begin(body, preexec_fn=lambda: [os.close(number) for number in closed])
    status, out, err = ended(process)
    assert status == INPUT
    assert (tmp_path / "out").read_text() == "the result"
    assert ("error: x" in err) == (2 not in closed)
    assert "error" not in out


def test_results_are_on_the_disk_when_the_output_fails(begin, tmp_path):
    with open("/dev/full", "w") as full:
        body = "from tacaf.files import write_json\nwrite_json(Path('out'), 1)\nprint('x', flush=True)"
        status, _, err = ended(begin(body, stdout=full))
    assert status == INPUT
    assert "no space left" in one_line(err)
    assert (tmp_path / "out").read_text() == "1\n"


def test_a_main_in_the_same_process(capsys, tmp_path):
    """As tests and other programs call it: in any thread, with words; the handlers are as before."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    @entry()
    def main(argv=None) -> int:
        parser = Parser(prog="x")
        parser.add_argument("--out", type=to_path, required=True)
        write_whole(parser.parse_args(argv).out, "x")
        return 7

    assert main(["--out", str(tmp_path / "out")]) == 7
    assert main(["--help"]) == 0
    assert "usage" in capsys.readouterr().out
    for words, value in ((["--no-such"], "--out"), (["--out", "a\0b"], "--out"), (["--out", ""], "--out")):
        assert main(words) == INPUT
        assert value in one_line(capsys.readouterr().err)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_paths_of_options(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert to_path("~/x") == Path("/home/me/x")
    parser = Parser()
    parser.add_argument("--out", type=to_path)
    with pytest.raises(InputError, match="no-such-user"):
        parser.parse_args(["--out", "~no-such-user/x"])
