"""Opening a shard set: what it gives, and every way it can be wrong."""

import dataclasses
import shutil

import numpy as np
import pytest

from tacaf.data.index import ShardIndex, _ranges, select_training
from tacaf.vocabulary import InputError, Modality
from tests.shards.raw import edited


@pytest.fixture
def damaged(sysu_shards, tmp_path):
    """A copy of the set to break."""
    return shutil.copytree(sysu_shards, tmp_path / "set")


def test_rows_of_are_the_identities_images(sysu_shards):
    index = ShardIndex.open(sysu_shards)
    pids = index.pids_of("test")
    expected = [row for row, pid in enumerate(index.columns["pid"]) if pid in set(pids.tolist())]
    assert index.rows_of(pids).tolist() == expected


def test_trainval_is_both(sysu_shards):
    index = ShardIndex.open(sysu_shards)
    assert set(index.pids_of("trainval")) == set(index.splits["train"]) | set(index.splits["val"])


def test_training_set_ranges(sysu_shards):
    index = ShardIndex.open(sysu_shards)
    chosen = select_training(index, "train")
    for label, pid in enumerate(chosen.pid_I):
        for modality in Modality:
            rows = range(chosen.start_2I[modality.code, label], chosen.stop_2I[modality.code, label])
            expected = np.flatnonzero((index.columns["pid"] == pid) & (index.columns["modality"] == modality.code))
            assert list(rows) == expected.tolist()


def test_ranges_against_a_loop():
    starts, stops = np.array([3, 7, 7, 20]), np.array([5, 7, 9, 21])
    assert _ranges(starts, stops).tolist() == [n for a, b in zip(starts, stops, strict=True) for n in range(a, b)]


def test_an_identity_without_infrared_is_left_out_and_counted(sysu_shards):
    index = ShardIndex.open(sysu_shards)
    columns = dict(index.columns)
    pid = int(index.pids_of("train")[0])
    modality = np.array(columns["modality"])
    modality[columns["pid"] == pid] = Modality.VISIBLE.code
    columns["modality"] = modality
    changed = dataclasses.replace(index, columns=columns)
    chosen = select_training(changed, "train")
    assert chosen.left_out == (pid,)
    assert pid not in chosen.pid_I
    assert "1 identities left out" in chosen.describe(1)


def test_a_missing_modality_is_refused(sysu_shards):
    index = ShardIndex.open(sysu_shards)
    columns = {**index.columns, "modality": np.zeros(len(index), dtype=np.uint8)}
    changed = dataclasses.replace(index, columns=columns)
    with pytest.raises(InputError, match=r"infrared .*split 'train'"):
        select_training(changed, "train")


def test_no_set(tmp_path):
    with pytest.raises(InputError, match=r"index\.json"):
        ShardIndex.open(tmp_path)


def test_unknown_split(sysu_shards):
    with pytest.raises(InputError, match="split"):
        ShardIndex.open(sysu_shards).pids_of("holdout")


@pytest.mark.parametrize(
    ("name", "breaks", "says"),
    [
        ("text", lambda f: (f / "index.json").write_text("{"), r"index\.json: not valid JSON"),
        ("format", lambda f: edited(f, format="coco"), "format: .*coco"),
        ("version", lambda f: edited(f, format_version=99), "format_version .* 99"),
        ("column", lambda f: (f / "columns" / "pid.npy").unlink(), r"pid\.npy is missing"),
        (
            "short",
            lambda f: np.save(f / "columns" / "pid.npy", np.zeros(3, dtype=np.int64)),
            "192 entries of <i8, got 3",
        ),
        ("shard", lambda f: next(f.glob("*.tar")).unlink(), r"\.tar is missing"),
        ("cut", lambda f: _cut(next(f.glob("*.tar"))), r"\.tar is truncated or another file"),
    ],
)
def test_damage_is_named(damaged, name, breaks, says):
    breaks(damaged)
    with pytest.raises(InputError, match=says):
        ShardIndex.open(damaged)


def test_a_changed_column_is_found_by_its_hash(damaged):
    path = damaged / "columns" / "camid.npy"
    values = np.load(path)
    np.save(path, np.where(values == 1, np.int16(2), values))
    with pytest.raises(InputError, match=r"camid\.npy: .*sha256"):
        ShardIndex.open(damaged)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-512])


def test_trainval_of_a_set_without_val_is_train(sysu_shards):
    index = ShardIndex.open(sysu_shards)
    splits = {name: pids for name, pids in index.splits.items() if name != "val"}
    without = dataclasses.replace(index, splits=splits)
    assert without.pids_of("trainval").tolist() == index.pids_of("train").tolist()
    assert without.pids_of("trainval").dtype == np.int64
    with pytest.raises(InputError, match="test, got 'trainval'"):
        dataclasses.replace(index, splits={"test": splits["test"]}).pids_of("trainval")
