"""Packing in processes, killed and gone on with: the same bytes, finished shards untouched, one packing at a time."""

import errno
import io
import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tqdm import tqdm

from shards import output, shard_job, writer
from shards.__main__ import main
from shards.output import new_set
from shards.shard_job import FinishedShard, plan, write_shard
from shards.sources import llcm
from shards.sources.record import Record
from shards.verify import verify
from shards.workers import in_order
from shards.writer import Packed, pack
from tacaf.vocabulary import InputError, Split
from tests.processes import LIMIT_S, wait_until
from tests.shards.raw import column, image_bytes, noise_records, noise_splits, snapshot, write_llcm

MIB = 2**20
PADDING = bytes(MIB)  # after the end of a JPEG: still a whole image, and an identity fills a shard of 1 MiB
ROOT = Path(__file__).parents[2]


def raw(root: Path, pids: int = 4) -> list[Record]:
    """Every identity fills a shard."""
    records = noise_records(root, pids)
    for record in records[::4]:
        record.path.write_bytes(record.path.read_bytes() + PADDING)
    return records


def pack_raw(root: Path, out: Path, records: list[Record], **options) -> Packed:
    pids = max(record.pid for record in records)
    return pack(records, out, "noise", noise_splits(pids), root=root, source="noise", **{"shard_mib": 1, **options})


def interrupted(root: Path, out: Path, records: list[Record]) -> dict[str, tuple[int, int]]:
    """A packing that an unreadable last image ended; the finished shards."""
    records[-1].path.write_bytes(b"")
    with pytest.raises(InputError, match="empty file"):
        pack_raw(root, out, records)
    assert not out.exists()
    return identities(out)


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every tar of a set, or waiting for the set: a rewritten file has others."""
    waiting = folder.with_name(folder.name + ".packing") / "shards"
    tars = [*folder.glob("*.tar"), *waiting.glob("*.tar")]
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in tars}


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_bytes(tmp_path):
    """With bad images, and a shard of nothing but bad images: the numbers of the shards have no gap."""
    records = raw(tmp_path / "raw", pids=6)
    for record in records[8:12]:
        record.path.write_bytes(b"junk" + PADDING)
    records[1].path.write_bytes(b"")
    expected = {str(records[n].path.relative_to(tmp_path / "raw")) for n in (1, 8, 9, 10, 11)}
    for workers in (1, 3):
        out = tmp_path / f"set{workers}"
        packed = pack_raw(tmp_path / "raw", out, records, skip_bad=True, workers=workers)
        assert {entry.path for entry in packed.index.left_out} == expected
        reasons = sorted({entry.reason for entry in packed.index.left_out})
        assert ["empty" in reasons[0], "format" in reasons[1]] == [True, True], reasons
        assert packed.index.left_out_count == 5
        assert "5 images left out, listed in index.json" in packed.summary()
    assert snapshot(tmp_path / "set1") == snapshot(tmp_path / "set3")
    assert sorted(path.name for path in out.glob("*.tar")) == [f"noise-00000{n}.tar" for n in range(5)]
    assert sorted(set(column(out, "shard").tolist())) == list(range(5))
    assert verify(out) == []


def test_finished_shards_are_not_written_again(tmp_path, capsys):
    records = raw(tmp_path / "raw")
    good = records[-1].path.read_bytes()
    finished = interrupted(tmp_path / "raw", tmp_path / "set", records)
    assert len(finished) == 3
    records[-1].path.write_bytes(good)
    pack_raw(tmp_path / "raw", tmp_path / "set", records)
    assert "going on from 3 of 4 shards" in capsys.readouterr().err
    assert set(finished.values()) < set(identities(tmp_path / "set").values())
    pack_raw(tmp_path / "raw", tmp_path / "whole", records)
    assert snapshot(tmp_path / "set") == snapshot(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "set", "whole"]


def test_leaving_the_bad_image_out_keeps_the_other_shards(tmp_path):
    """The advice that the error gives must not cost the hours before it."""
    records = raw(tmp_path / "raw")
    finished = interrupted(tmp_path / "raw", tmp_path / "set", records)
    pack_raw(tmp_path / "raw", tmp_path / "set", records, skip_bad=True)
    assert set(finished.values()) < set(identities(tmp_path / "set").values())
    assert verify(tmp_path / "set") == []


def touch(records: list[Record]) -> list[Record]:
    os.utime(records[0].path, (1, 1))
    return records


def rewrite(records: list[Record]) -> list[Record]:
    records[0].path.write_bytes(image_bytes(99) + PADDING)
    return records


def other_split(records: list[Record]) -> list[Record]:
    return [replace(r, split=None if r.pid == 1 else r.split) for r in records]


def other_number(records: list[Record]) -> list[Record]:
    return [replace(r, number=r.number + 7 * (r.pid == 1)) for r in records]


@pytest.mark.parametrize("change", [touch, rewrite, other_split, other_number])
def test_shards_of_changed_files_or_lists_are_dropped(tmp_path, capsys, change):
    records = raw(tmp_path / "raw")
    finished = interrupted(tmp_path / "raw", tmp_path / "set", records)
    changed = change(records)
    capsys.readouterr()
    pack_raw(tmp_path / "raw", tmp_path / "set", changed, skip_bad=True)
    shown = capsys.readouterr().err
    assert "dropped 1 of the shards finished before" in shown
    assert "going on from 2 of 4 shards" in shown
    assert len(set(finished.values()) & set(identities(tmp_path / "set").values())) == 2
    pack_raw(tmp_path / "raw", tmp_path / "whole", changed, skip_bad=True)
    assert snapshot(tmp_path / "set") == snapshot(tmp_path / "whole")


def test_other_options_begin_anew(tmp_path, capsys):
    records = raw(tmp_path / "raw")
    interrupted(tmp_path / "raw", tmp_path / "set", records)
    pack_raw(tmp_path / "raw", tmp_path / "set", records, skip_bad=True, shard_mib=2)
    shown = capsys.readouterr().err
    assert "dropped 3 of the shards finished before" in shown
    assert "going on" not in shown
    assert len(identities(tmp_path / "set")) == 2


def test_bad_images_left_out_before_stop_a_packing_that_does_not_allow_them(tmp_path):
    records = raw(tmp_path / "raw")
    records[1].path.write_bytes(b"")
    records[-1].path.unlink()
    records[-1].path.mkdir()
    jobs = list(plan(records, tmp_path / "raw", tmp_path, MIB, skip_bad=True))
    for job in jobs:
        write_shard(job, lambda images: None)
    assert [shard_job.finished(job) is not None for job in jobs] == [True] * 3 + [False], "unread: tried again"
    strict = [replace(job, skip_bad=False) for job in jobs]
    assert [shard_job.finished(job) is not None for job in strict] == [False, True, True, False]


@pytest.mark.parametrize("suffix", [".tar", ".idx", ".json"])
def test_a_damaged_leftover_is_written_again(tmp_path, suffix, capsys):
    records = raw(tmp_path / "raw")
    interrupted(tmp_path / "raw", tmp_path / "set", records)
    victim = sorted((tmp_path / "set.packing/shards").glob(f"*{suffix}"))[0]
    if suffix == ".idx":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-1])
    pack_raw(tmp_path / "raw", tmp_path / "set", records, skip_bad=True)
    assert "going on from 2 of 4 shards" in capsys.readouterr().err
    assert verify(tmp_path / "set") == []


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
    finished = identities(tmp_path / "b")
    pack_raw(tmp_path / "raw", tmp_path / "b", records)
    assert set(finished.values()) == set(identities(tmp_path / "b").values())
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


@pytest.mark.slow
def test_progress_counts_the_images_of_all_workers(tmp_path):
    records = raw(tmp_path / "raw")
    jobs = list(plan(records, tmp_path / "raw", tmp_path, MIB, skip_bad=False))
    with tqdm(total=20, initial=4, file=io.StringIO(), disable=False) as bar:
        shards = list(in_order(write_shard, jobs, 2, bar))
        assert bar.n == 20
    assert [len(shard.offset) for shard in shards] == [4] * 4
    assert all(isinstance(shard, FinishedShard) for shard in shards)


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
            finished, workers = identities(out), children_of(process.pid)
            at_work = [pid for pid in workers if b"spawn_main" in command_line(pid)]
            assert len(at_work) == 2
            assert all(blocks_ctrl_c(pid) for pid in at_work), "a terminal sends it to them too"
            assert main(llcm_command(root, out, workers=1)) == 2
            assert f"but process {process.pid} is" in capsys.readouterr().err
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
        word = {"SIGTERM": "terminated", "SIGINT": "interrupted"}.get(how, "one was killed")
        (last,) = shown.splitlines()
        assert last.startswith("error: ")
        assert word in last
        assert last.endswith(f"3 finished shards wait in {records}: the same command resumes from there")
    assert main(llcm_command(root, out, workers=1)) == 0
    assert "going on from 3 of 4 shards" in capsys.readouterr().err
    assert len(finished) == 3
    assert set(finished.values()) < set(identities(out).values())
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
from tests.shards.test_resume import pack_raw
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


def test_a_set_in_one_shard_says_nothing_of_going_on(tmp_path, capsys):
    pack(noise_records(tmp_path / "raw"), tmp_path / "set", "noise", noise_splits(), root=tmp_path / "raw", source="")
    assert capsys.readouterr().err == ""
    assert json.loads((tmp_path / "set/index.json").read_text())["images"] == 16


@pytest.mark.parametrize("workers", [0, -1, 2000])
def test_a_wrong_number_of_workers(tmp_path, workers):
    with pytest.raises(InputError, match=r"--workers .*1024"):
        pack_raw(tmp_path / "raw", tmp_path / "set", raw(tmp_path / "raw"), workers=workers)


def test_the_splits_of_the_records_reach_the_shards(tmp_path):
    """What the fingerprint holds of the lists."""
    records = raw(tmp_path / "raw")
    first = [job.fingerprint for job in plan(records, tmp_path / "raw", tmp_path, MIB, False)]
    moved = [replace(r, split=Split.VAL if r.pid == 2 else r.split) for r in records]
    second = [job.fingerprint for job in plan(moved, tmp_path / "raw", tmp_path, MIB, False)]
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, False, True, True]
