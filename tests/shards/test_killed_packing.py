"""Packings that are killed, run out of disk space, or die while they replace the old set."""

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shards.__main__ import main
from shards.sources import llcm
from shards.verify import verify
from tacaf.vocabulary import InputError
from tests.processes import LIMIT_S, wait_until
from tests.shards.noise_sets import MIB, PADDING, ROOT, finished_shards, pack_raw, raw
from tests.shards.raw import image_bytes, noise_records, snapshot, write_llcm


def llcm_command(root: Path, out: Path, workers: int) -> list[str]:
    words = ["pack", "llcm", "--root", root, "--out", out, "--shard-mib", 1, "--workers", workers]
    return [str(word) for word in words]


WAITING = """
import pathlib, time
real = pathlib.Path.read_bytes
def read_bytes(path):
    while str(path) == {slow!r}:
        time.sleep(1)
    return real(path)
pathlib.Path.read_bytes = read_bytes
"""


def children_of(pid: int) -> set[int]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(after_name[1]) == pid and after_name[0] != "Z":
            found.add(int(path.parent.name))
    return found


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGINT", "a worker"])
def test_a_killed_packing_goes_on(tmp_path, capsys, how):
    """A real one, with two workers: one of them waits for an image that never comes, so the kill finds them at work.

    Reading it is made to wait by a module that Python imports first, in every process with this environment.
    """
    root, out = write_llcm(tmp_path / "raw"), tmp_path / "sets" / "set"
    for pid in (5, 7):
        path = next((root / f"vis/{pid:04d}").iterdir())
        path.write_bytes(path.read_bytes() + PADDING)
    for pid in (6, 8):
        path = next((root / f"test_vis/cam1/{pid:04d}").iterdir())
        path.write_bytes(path.read_bytes() + PADDING)
    slow = next((root / "nir/0007").iterdir())
    (tmp_path / "first").mkdir()
    (tmp_path / "first/sitecustomize.py").write_text(WAITING.format(slow=str(slow)))
    process = subprocess.Popen(
        [sys.executable, "-m", "shards", *llcm_command(root, out, workers=2)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{tmp_path / 'first'}:{ROOT}"},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    records = out.with_name("set.packing") / "shards"
    with process:
        try:
            wait_until(lambda: len(list(records.glob("*.json"))) == 3, process)
            finished, workers = finished_shards(out), children_of(process.pid)
            at_work = [pid for pid in workers if b"spawn_main" in command_line(pid)]
            assert len(at_work) == 2
            assert all(blocks_ctrl_c(pid) for pid in at_work), "a terminal sends it to them too"
            assert main(llcm_command(root, out, workers=1)) == 2
            assert f"in use by process {process.pid};" in capsys.readouterr().err
            if how == "a worker":
                for pid in at_work:
                    os.kill(pid, signal.SIGKILL)
            elif how == "SIGINT":
                os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to the workers too
            else:
                process.send_signal(signal.Signals[how])
            _, shown = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
    assert process.returncode == {"SIGKILL": -9, "SIGTERM": 143, "SIGINT": 130, "a worker": 2}[how]
    wait_until(lambda: not any(b"spawn_main" in command_line(pid) for pid in at_work))
    assert not out.exists()
    assert not list(out.parent.rglob("index.json"))
    if how != "SIGKILL":
        word = {"SIGTERM": "terminated", "SIGINT": "interrupted"}.get(how, "was killed")
        (last,) = shown.splitlines()
        assert last.startswith("error: ")
        assert word in last
        assert last.endswith(f"3 finished shards are kept in {records}: the same command resumes from there")
    assert main(llcm_command(root, out, workers=1)) == 0
    assert "3 of 4 shards" in capsys.readouterr().err
    assert len(finished) == 3
    assert set(finished.values()) < set(finished_shards(out).values())
    whole = llcm.pack(root, tmp_path / "whole", shard_mib=1)
    assert snapshot(out) == snapshot(whole.folder)
    assert [path.name for path in out.parent.iterdir()] == ["set"]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def blocks_ctrl_c(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    blocked = next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk:"))
    return bool(int(blocked, 16) >> (signal.SIGINT - 1) & 1)


def test_a_full_disk_is_one_clear_error(tmp_path):
    """A limit on the size of files stands for it: the write fails in a worker, inside the third shard."""
    records = raw(tmp_path / "raw")
    records[8].path.write_bytes(image_bytes(1) + 3 * PADDING)
    rows = [f"{r.path.relative_to(tmp_path / 'raw')},{r.pid},{r.modality},{r.split}\n" for r in records]
    (tmp_path / "list.csv").write_text("path,pid,modality,split\n" + "".join(rows))
    words = ["--csv", tmp_path / "list.csv", "--root", tmp_path / "raw", "--out", tmp_path / "set"]
    command = [sys.executable, "-m", "shards", "pack", "manifest", *words, "--shard-mib", "1", "--workers", "2"]
    limit = (2 * MIB, 2 * MIB)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/set.packing/shards/")
    assert os.strerror(errno.EFBIG)[1:] in line
    assert "the same command resumes from there" in line
    assert not (tmp_path / "set").exists()
    assert not list(tmp_path.rglob("index.json"))
    assert not list(tmp_path.rglob("*.partial"))
    assert main([str(word) for word in command[3:]]) == 0
    assert verify(tmp_path / "set") == []


SWAP = """
import os, signal, sys
from pathlib import Path
from shards import output
from tests.shards.noise_sets import pack_raw
from tests.shards.raw import noise_records
exchange, rename = output._exchange, os.rename
def die(*names): os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[3] == "exchange":
    output._exchange = lambda *names: exchange(*names) and die()
else:
    output._exchange = lambda *names: False
    os.rename = lambda source, target: die() if source.parent.name == "set.packing" else rename(source, target)
root = Path(sys.argv[1])
pack_raw(root, Path(sys.argv[2]), [r for r in noise_records(root, 4)], overwrite=True)
"""


@pytest.mark.parametrize("step", ["exchange", "rename"])
def test_a_kill_in_the_moment_of_replacing_leaves_the_old_set_or_the_new(tmp_path, step):
    records, out = raw(tmp_path / "raw"), tmp_path / "sets" / "set"
    pack_raw(tmp_path / "raw", out, records)
    before = snapshot(out)
    script = [sys.executable, "-c", SWAP, tmp_path / "raw", out, step]
    done = subprocess.run(script, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL, done.stderr
    if step == "exchange":
        assert verify(out) == []
        assert snapshot(out) != before
    with pytest.raises(InputError, match="--overwrite"):  # the next packing finds the set in its place
        pack_raw(tmp_path / "raw", out, records)
    assert (snapshot(out) == before) == (step == "rename")
    pack_raw(tmp_path / "raw", out, noise_records(tmp_path / "raw"), overwrite=True)
    assert verify(out) == []
    assert [path.name for path in out.parent.iterdir()] == ["set"]
