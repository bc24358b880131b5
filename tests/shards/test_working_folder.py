"""The folder that a packing works in: its lock, its hard links, and the exchange with the old set."""

import errno
import os

import pytest

from shards import output, writer
from shards.output import new_set
from tacaf.vocabulary import InputError
from tests.shards.noise_sets import finished_shards, pack_raw, raw
from tests.shards.raw import snapshot


def test_without_hard_links_nothing_is_lost(tmp_path, monkeypatch):
    records = raw(tmp_path / "raw")
    pack_raw(tmp_path / "raw", tmp_path / "a", records)

    def refuse(*names):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(output.os, "link", refuse)
    monkeypatch.setattr(writer, "write_column", refuse)
    with pytest.raises(PermissionError) as raised:
        pack_raw(tmp_path / "raw", tmp_path / "b", records)
    assert raised.value.__notes__[0].startswith("4 finished shards wait")
    monkeypatch.undo()
    monkeypatch.setattr(output.os, "link", refuse)
    finished = finished_shards(tmp_path / "b")
    pack_raw(tmp_path / "raw", tmp_path / "b", records)
    assert set(finished.values()) == set(finished_shards(tmp_path / "b").values())
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


def test_one_packing_at_a_time(tmp_path):
    records = raw(tmp_path / "raw")

    def first() -> None:
        with new_set(tmp_path / "set", False):
            with pytest.raises(InputError, match=f"set, but process {os.getpid()} "):
                pack_raw(tmp_path / "raw", tmp_path / "set", records)
            pack_raw(tmp_path / "raw", tmp_path / "other", records)
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        first()
    pack_raw(tmp_path / "raw", tmp_path / "set", records)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "raw", "set"]


def test_the_working_folder_must_be_ours(tmp_path):
    (tmp_path / "set.packing").mkdir()
    (tmp_path / "set.packing/thesis.txt").write_text("years")
    with pytest.raises(InputError, match=r"set\.packing, .*thesis\.txt"):
        pack_raw(tmp_path / "raw", tmp_path / "set", raw(tmp_path / "raw"))
    assert snapshot(tmp_path / "set.packing") == {"thesis.txt": b"years"}


def test_a_lock_file_that_its_owner_has_just_removed(tmp_path, monkeypatch):
    """Opened before and locked after: it locks nothing that another process would see, so a new one is made."""
    lock, opened, flock = tmp_path / "set.packing/lock", os.open, output.fcntl.flock
    calls = []

    def open_late(path, *rest, **options):
        calls.append(path)
        if path == lock and len(calls) == 1:
            lock.parent.rmdir()
        return opened(path, *rest, **options)

    def lock_late(handle, how):
        calls.append(handle)
        if len(calls) == 3:
            lock.unlink()
        flock(handle, how)

    monkeypatch.setattr(output.os, "open", open_late)
    monkeypatch.setattr(output.fcntl, "flock", lock_late)
    with new_set(tmp_path / "set", False):
        assert lock.read_text() == str(os.getpid())
    assert calls[:2] == [lock, lock]
    assert sum(isinstance(call, int) for call in calls) == 2, "locked twice"


@pytest.mark.parametrize(("code", "goes_on"), [(errno.ENOLCK, True), (errno.EIO, False)])
def test_a_file_system_without_locks(tmp_path, monkeypatch, code, goes_on):
    def refuse(*how):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(output.fcntl, "flock", refuse)
    records = raw(tmp_path / "raw")
    if goes_on:
        assert pack_raw(tmp_path / "raw", tmp_path / "set", records).index.images == 16
    else:
        with pytest.raises(OSError, match=os.strerror(code)):
            pack_raw(tmp_path / "raw", tmp_path / "set", records)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "set.packing"]


def test_exchange(tmp_path, monkeypatch):
    (tmp_path / "a/inside").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    assert output._exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b/inside").is_dir()
    assert not output._exchange(tmp_path / "b", tmp_path / "b/inside"), "the system says that it cannot"
    with pytest.raises(FileNotFoundError):
        output._exchange(tmp_path / "a", tmp_path / "c")
    monkeypatch.setattr(output.ctypes, "CDLL", lambda *_, **__: object())
    assert not output._exchange(tmp_path / "a", tmp_path / "b"), "a system without the call"


def test_links_fail_for_a_reason(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    with pytest.raises(FileExistsError):
        output.link(tmp_path / "a", tmp_path / "b")


def test_a_mount_point_cannot_be_renamed(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    monkeypatch.setattr(output.os.path, "ismount", lambda path: path == tmp_path / "set")
    with pytest.raises(InputError, match="mount point"):
        pack_raw(tmp_path / "raw", tmp_path / "set", raw(tmp_path / "raw"))
