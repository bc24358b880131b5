"""Several writers of one file: killed ones leave nothing behind, and living ones do not disturb each other."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tacaf import files
from tacaf.files import (
    locked,
    remove_leftovers,
    write_whole,
)
from tacaf.vocabulary import InputError
from tests.test_files import ROOT, WRITERS, left_in, write_file, write_in_folder, write_tensors

HOLD = """
import sys
from pathlib import Path
from tacaf import files
with getattr(files, sys.argv[1])(Path(sys.argv[2])) as made:
    if sys.argv[1] == "whole_folder":
        (made / "inside").write_text("a part")
    print("open", flush=True)
    sys.stdin.read()
"""


def holder(whole: str, path: Path) -> subprocess.Popen:
    """A process that is writing `path` and has come half way."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, whole, path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


@pytest.mark.parametrize("whole", ["whole_file", "whole_path", "whole_folder"])
def test_the_next_writer_removes_what_a_killed_one_left_and_nothing_in_use(tmp_path, whole):
    killed, living = holder(whole, tmp_path / "out"), holder(whole, tmp_path / "out")
    neighbours = [tmp_path / ".out.not-ours", tmp_path / ".out2.0123456789abcdef.partial", tmp_path / "out.partial"]
    for path in neighbours:
        path.touch()
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert len(list(tmp_path.glob(".out.*.partial"))) == 2
        remove_leftovers(tmp_path / "out")
        assert len(list(tmp_path.glob(".out.*.partial"))) == 1
        write_whole(tmp_path / "another", "x")
    finally:
        living.communicate("", timeout=60)
        killed.communicate()
    assert living.returncode == 0
    assert (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out.*.partial"))
    assert all(path.exists() for path in neighbours)


def test_two_writers_at_once_leave_one_whole_file(tmp_path):
    path, wrong = tmp_path / "out", []
    texts = [letter * 10_000 for letter in "abcd"]

    def write(text: str) -> None:
        try:
            for _ in range(30):
                write_whole(path, text)
        except InputError as error:
            wrong.append(error)

    threads = [threading.Thread(target=write, args=[text]) for text in texts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            assert path.read_text() in texts
    for thread in threads:
        thread.join()
    assert not wrong
    assert not left_in(tmp_path)


@pytest.mark.parametrize("write", [*WRITERS, write_in_folder])
def test_a_new_file_that_is_taken_for_a_leftover_is_made_again(tmp_path, monkeypatch, write):
    """Another writer has locked it between its making and its locking, and removes it while we wait."""
    real, removing = files.fcntl.flock, []

    def flock(handle: int, how: int) -> None:
        new = [path for path in tmp_path.glob("*.partial") if os.path.samestat(path.stat(), os.fstat(handle))]
        if new and not removing:
            other = os.open(new[0], os.O_RDONLY)
            real(other, files.fcntl.LOCK_EX)

            def remove() -> None:
                new[0].rmdir() if new[0].is_dir() else new[0].unlink()
                os.close(other)

            removing.append(threading.Timer(0.05, remove))
            removing[0].start()
        real(handle, how)

    monkeypatch.setattr(files.fcntl, "flock", flock)
    write(tmp_path / "out")
    removing[0].join()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_system_without_locks_and_without_synchronised_folders(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "a folder")
        real(handle)

    monkeypatch.setattr(files.os, "fsync", fsync)
    left = tmp_path / ".out.0123456789abcdef.partial"
    left.touch()
    write_file(tmp_path / "out")
    write_tensors(tmp_path / "tensors")
    with locked(tmp_path / "lock"):
        pass
    assert left.exists()  # nobody knows whether it is in use
