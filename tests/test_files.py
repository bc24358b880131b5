"""Files that are written whole or not at all: under every umask, on a full disk, through links."""

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tacaf.files import (
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


@pytest.mark.parametrize("whole", [whole_folder, whole_path, whole_file])
def test_a_folder_that_takes_nothing_new_is_refused(whole):
    """There the system says that a new folder does not exist, as where another process removed it."""
    with pytest.raises(InputError, match="/proc/here"), whole(Path("/proc/here")):
        pass
