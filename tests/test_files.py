"""Files that are whole or not there: under every umask, on a full disk, beside killed and beside living writers."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tacaf import files
from tacaf.files import (
    locked,
    path_of,
    read_bytes,
    reason_of,
    remove_leftovers,
    sha256_of,
    shown,
    whole_file,
    whole_folder,
    whole_path,
    write_json,
    write_whole,
)
from tacaf.vocabulary import InputError
from tests.disks import fill

ROOT = Path(__file__).parent.parent


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.endswith(".partial")]


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def write_file(path: Path) -> None:
    write_whole(path, b"new")


def write_tensors(path: Path) -> None:
    with whole_path(path) as made:
        save_file({"a": torch.ones(3)}, made)  # a library that makes files of mode 0600


def write_in_folder(path: Path) -> None:
    with whole_folder(path) as folder:
        (folder / "inside").write_bytes(b"new")


WRITERS = [write_file, write_tensors]


@pytest.mark.parametrize("write", WRITERS)
def test_a_new_file_follows_the_umask_and_an_old_one_keeps_its_mode(tmp_path, write, umask):
    write(tmp_path / "new")
    assert mode_of(tmp_path / "new") == 0o666 & ~umask
    for mode in (0o600, 0o640, 0o644, 0o444):
        (tmp_path / "old").touch()
        (tmp_path / "old").chmod(mode)
        write(tmp_path / "old")
        assert mode_of(tmp_path / "old") == mode
    assert not left_in(tmp_path)


def test_a_new_folder_follows_the_umask(tmp_path, umask):
    write_in_folder(tmp_path / "new")
    assert mode_of(tmp_path / "new") == 0o777 & ~umask
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "inside"]


def test_what_is_being_written_is_never_more_readable_than_the_old_file(tmp_path):
    path = tmp_path / "private"
    path.touch()
    path.chmod(0o600)
    with whole_file(path), whole_path(tmp_path / "other"):
        [temporary] = list(tmp_path.glob(".private.*"))
        assert mode_of(temporary) == 0o600


@pytest.mark.parametrize("write", WRITERS)
def test_a_link_stays_a_link(tmp_path, write):
    (tmp_path / "elsewhere").mkdir()
    real, link = tmp_path / "elsewhere" / "real", tmp_path / "link"
    link.symlink_to(real)
    write(link)  # its end is not there yet
    write(link)
    assert link.is_symlink()
    assert not real.is_symlink()
    assert real.stat().st_size > 0
    assert not left_in(tmp_path)


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "too long a name", "link to itself", "below a file"])
@pytest.mark.parametrize("write", WRITERS)
def test_what_is_no_file_is_refused_and_stays(tmp_path, write, kind):
    path = tmp_path / "out"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/null")
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "below a file":
        path.touch()
        path = path / "below"
    else:
        path = tmp_path / ("x" * 300)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match="out" if kind != "too long a name" else "xxx"):
        write(path)
    assert sorted(tmp_path.iterdir()) == before
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "no/such/folder/file"], ids=["NUL", "long", "no folder"])
@pytest.mark.parametrize("write", [*WRITERS, write_in_folder])
def test_a_path_that_cannot_be(tmp_path, monkeypatch, write, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        write(Path(path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 127, "x" * 229, "x" * 230, os.fsdecode(b"\xff" * 255)])
@pytest.mark.parametrize("write", [*WRITERS, write_in_folder])
def test_the_longest_names_can_be_written(tmp_path, write, name):
    write(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("write", [*WRITERS, write_in_folder])
def test_a_read_only_folder(tmp_path, write):
    tmp_path.chmod(0o555)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("root writes everywhere")
        with pytest.raises(InputError, match="out"):
            write(tmp_path / "out")
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.parametrize(
    "error", [RuntimeError("of the block"), KeyboardInterrupt(), OSError(errno.ENOENT, "x", "other")]
)
@pytest.mark.parametrize("whole", [whole_file, whole_path, whole_folder])
def test_an_error_of_the_block_passes_and_leaves_all_as_it_was(tmp_path, whole, error):
    path = tmp_path / "out"
    if whole is not whole_folder:
        path.write_text("old")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(type(error)) as caught, whole(path):
        raise error
    assert caught.value is error
    assert sorted(tmp_path.iterdir()) == before


def fill_file(path: Path) -> None:
    write_whole(path, bytes(2**20))


def fill_by_numpy(path: Path) -> None:
    with whole_file(path) as file:
        np.savez(file, a=np.zeros(2**17))


def fill_by_safetensors(path: Path) -> None:
    with whole_path(path) as made:
        save_file({"a": torch.zeros(2**18)}, made)


def fill_folder(path: Path) -> None:
    with whole_folder(path) as folder:
        (folder / "a").write_bytes(bytes(2**20))


@pytest.mark.parametrize("write", [fill_file, fill_by_numpy, fill_by_safetensors, fill_folder])
def test_a_small_disk_is_one_sentence_and_loses_nothing(small_disk, write):
    path = small_disk / "result"
    if write is not fill_folder:
        path.write_text("old")
    fill(small_disk, but=2**16)
    with pytest.raises(InputError, match="result: no space"):
        write(path)
    assert not left_in(small_disk)
    assert path.exists() == (write is not fill_folder)
    if path.exists():
        assert path.read_text() == "old"


def test_a_size_limit_of_the_process(tmp_path):
    code = (
        "import resource, sys; from pathlib import Path; from tacaf.files import write_whole\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from tacaf.vocabulary import InputError\n"
        "try: write_whole(Path(sys.argv[1]), bytes(2000))\n"
        "except InputError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "out"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert "out: file too large" in done.stdout
    assert not list(tmp_path.iterdir())


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


def test_json_is_whole_and_has_no_infinities(tmp_path):
    path = tmp_path / "a" / "b" / "out.json"
    write_json(path, {"a": [1, None], "name": os.fsdecode(b"\xff")})
    text = path.read_text()
    assert '"\\udcff"' in text
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, float("nan"))
    assert path.read_text() == text
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file"):
        write_json(tmp_path / "file" / "out.json", 1)


def test_text_keeps_the_bytes_of_a_name(tmp_path):
    write_whole(tmp_path / "out", os.fsdecode(b"a\xff\n"))
    assert (tmp_path / "out").read_bytes() == b"a\xff\n"


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "endless", "link to itself", "NUL", "long", "too large"])
def test_reading_what_is_no_plain_file_within_the_limit(tmp_path, kind):
    path = tmp_path / "in"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "too large":
        path.write_bytes(bytes(101))
    elif kind != "missing":
        path = Path("a\0in" if kind == "NUL" else "in" * 3000)
    with pytest.raises(InputError, match="in"):
        read_bytes(path, 100)


def test_reading_a_file_whose_size_is_not_told_in_advance():
    with pytest.raises(InputError, match="more than 5 bytes"):
        read_bytes(Path("/proc/self/status"), 5)
    assert read_bytes(Path("/proc/self/status"), 10**6)


def test_hash(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_lock_is_held_by_one(tmp_path):
    path = tmp_path / "new" / "lock"
    with locked(path):
        with pytest.raises(InputError, match="locked"), locked(path, wait=False):
            pass
        waiting = threading.Thread(target=lambda: locked(path).__enter__())
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive()
    waiting.join()


@pytest.mark.parametrize("kind", ["folder", "below a file", "NUL"])
def test_a_lock_that_cannot_be_made(tmp_path, kind):
    (tmp_path / "file").touch()
    path = {"folder": tmp_path, "below a file": tmp_path / "file" / "lock", "NUL": Path("a\0b")}[kind]
    with pytest.raises(InputError), locked(path):
        pass


def test_a_lock_leaves_no_file_and_holds_while_others_come_and_go(tmp_path):
    path, held = tmp_path / "lock", []

    def hold() -> None:
        for _ in range(50):
            with locked(path):
                held.append(1)
                assert len(held) == 1
                held.pop()

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not held
    assert not list(tmp_path.iterdir())


def test_a_lock_through_a_link(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with locked(tmp_path / "lock"):
        pass


def test_a_lock_on_a_pipe_does_not_wait_for_a_reader(tmp_path):
    os.mkfifo(tmp_path / "lock")
    with locked(tmp_path / "lock", wait=False):
        pass


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain name.jpg", "plain name.jpg"),
        ("Größe ± 猫 שלום", "Größe ± 猫 שלום"),
        (os.fsdecode(b"a\xffb"), "a\\xffb"),
        (b"a\xffb", "a\\xffb"),
        (Path(os.fsdecode(b"\x80")), "\\x80"),
        ("a\nb\r\t\x1b[31m\x7f", "a\\nb\\r\\t\\x1b[31m\\x7f"),
        ("user\u202egpj.exe\u200f\u2066", "user\\u202egpj.exe\\u200f\\u2066"),
        ("\ufeff\u2028\xa0\xad", "\\ufeff\\u2028\\xa0\\xad"),
        ("\ud800\U000e0001", "\\ud800\\U000e0001"),
    ],
)
def test_names_for_people(name, text):
    assert shown(name) == text
    shown(name).encode()


def test_a_tilde_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert path_of("~/x") == Path("/home/me/x")
    assert path_of("a~/~x") == Path("a~/~x")
    assert path_of(os.fsdecode(b"a\xff")) == Path(os.fsdecode(b"a\xff"))
    for text in ("", "a\0b", "~no-such-user-here/x", "\ud800"):
        with pytest.raises(InputError):
            path_of(text)


def test_reasons_read_as_the_end_of_a_sentence():
    assert reason_of(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) == "no space left on device"
    assert reason_of(ValueError("NaN is no number")) == "NaN is no number"
    assert reason_of(ValueError()) == "ValueError"


@pytest.mark.parametrize("whole", [whole_folder, whole_path, whole_file])
def test_a_folder_that_takes_nothing_new_is_refused(whole):
    """There the system says that a new folder does not exist, as where another process removed it."""
    with pytest.raises(InputError, match="/proc/here"), whole(Path("/proc/here")):
        pass
