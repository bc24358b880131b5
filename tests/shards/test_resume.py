"""Packing in several processes and resuming it: the same bytes, and finished shards are not written again."""

import io
import json
import os
from dataclasses import replace

import pytest
from tqdm import tqdm

from shards import shard_job
from shards.shard_job import FinishedShard, plan, write_shard
from shards.sources.record import Record
from shards.verify import verify
from shards.workers import in_order
from shards.writer import pack
from tacaf.vocabulary import InputError, Split
from tests.shards.noise_sets import MIB, PADDING, finished_shards, interrupted, pack_raw, raw
from tests.shards.raw import column, image_bytes, noise_records, noise_splits, snapshot


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
    assert set(finished.values()) < set(finished_shards(tmp_path / "set").values())
    pack_raw(tmp_path / "raw", tmp_path / "whole", records)
    assert snapshot(tmp_path / "set") == snapshot(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "set", "whole"]


def test_leaving_the_bad_image_out_keeps_the_other_shards(tmp_path):
    """The advice that the error gives must not cost the hours before it."""
    records = raw(tmp_path / "raw")
    finished = interrupted(tmp_path / "raw", tmp_path / "set", records)
    pack_raw(tmp_path / "raw", tmp_path / "set", records, skip_bad=True)
    assert set(finished.values()) < set(finished_shards(tmp_path / "set").values())
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
    assert len(set(finished.values()) & set(finished_shards(tmp_path / "set").values())) == 2
    pack_raw(tmp_path / "raw", tmp_path / "whole", changed, skip_bad=True)
    assert snapshot(tmp_path / "set") == snapshot(tmp_path / "whole")


def test_other_options_begin_anew(tmp_path, capsys):
    records = raw(tmp_path / "raw")
    interrupted(tmp_path / "raw", tmp_path / "set", records)
    pack_raw(tmp_path / "raw", tmp_path / "set", records, skip_bad=True, shard_mib=2)
    shown = capsys.readouterr().err
    assert "dropped 3 of the shards finished before" in shown
    assert "going on" not in shown
    assert len(finished_shards(tmp_path / "set")) == 2


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


@pytest.mark.slow
def test_progress_counts_the_images_of_all_workers(tmp_path):
    records = raw(tmp_path / "raw")
    jobs = list(plan(records, tmp_path / "raw", tmp_path, MIB, skip_bad=False))
    with tqdm(total=20, initial=4, file=io.StringIO(), disable=False) as bar:
        shards = list(in_order(write_shard, jobs, 2, bar))
        assert bar.n == 20
    assert [len(shard.offset) for shard in shards] == [4] * 4
    assert all(isinstance(shard, FinishedShard) for shard in shards)


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
