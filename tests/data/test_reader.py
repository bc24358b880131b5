"""Reading single images out of shards: damaged shards are named, and few files stay open."""

import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from tacaf.data.index import ShardIndex
from tacaf.data.reader import BadSampleError, ShardReader
from tacaf.data.storage import File
from tacaf.data.training_pipeline import TrainingPipeline
from tacaf.data.training_source import TrainingSource
from tacaf.vocabulary import InputError
from tests.data.pipelines import SIZE


def test_the_reader_can_be_sent_to_another_process(index):
    reader = ShardReader(index)
    reader.read(0)
    assert (pickle.loads(pickle.dumps(reader)).read(0) == reader.read(0)).all()


def test_a_shard_that_lost_its_end_is_named(index, tmp_path, plan):
    shard = int(index.columns["shard"][int(plan.global_batch(0, 0).row_B[0])])
    path = tmp_path / "cut.tar"
    path.write_bytes(Path(index.store.where(index.shards[shard].name)).read_bytes()[:1000])
    shards = list(index.shards)
    shards[shard] = File(str(path), 1000, "")
    broken = replace(index, shards=shards)
    with pytest.raises(InputError, match=r"cut\.tar"):
        next(TrainingPipeline(broken, TrainingSource(plan, SIZE)))


@pytest.mark.parametrize("change", [3, -512, 10**9])
def test_a_wrong_offset_is_named(index, plan, change):
    row = int(plan.global_batch(0, 0).row_B[3])
    offset = np.array(index.columns["offset"])
    offset[row] += change
    columns = {**index.columns, "offset": offset}
    wrong = replace(index, columns=columns)
    with pytest.raises(InputError, match=rf"{index.key(row)}: .* offset {offset[row]}"):
        next(TrainingPipeline(wrong, TrainingSource(plan, SIZE)))


def test_a_shard_that_loses_its_end_while_in_use_is_named(index, tmp_path):
    """Reading a map past the end of its file would kill the process."""
    last = int(np.argmax(index.columns["offset"]))
    shard = int(index.columns["shard"][last])
    path = Path(shutil.copy(index.store.where(index.shards[shard].name), tmp_path / "shrinks.tar"))
    shards = list(index.shards)
    shards[shard] = File(str(path), index.shards[shard].size, "")
    reader = ShardReader(replace(index, shards=shards))
    reader.read(last)
    os.truncate(path, int(index.columns["offset"][last]) + 10)
    with pytest.raises(BadSampleError, match=r"shrinks\.tar.*\D10 bytes"):
        reader.read(last)


@pytest.mark.slow
def test_a_reader_keeps_so_many_shards_open(sysu_shards_many):
    index = ShardIndex.open(sysu_shards_many)
    assert len(index.shards) > 2
    before = psutil.Process().num_fds()
    reader = ShardReader(index, 2)
    for row in np.unique(index.columns["shard"], return_index=True)[1].tolist() * 2:
        reader.read(row)
    assert psutil.Process().num_fds() == before + 2
    del reader
    assert psutil.Process().num_fds() == before
