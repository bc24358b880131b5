"""Ten million images of a million identities: the index fits, and a batch draws a bounded number of numbers."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tacaf.draws
from perf import bench_index
from tacaf.data.index import ShardIndex, select_training
from tacaf.data.plan import Plan, PlanConfig

pytestmark = pytest.mark.slow  # an index of millions

SCRIPT = Path(bench_index.__file__)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("paper") / "set"
    bench_index.write_index(path, identities=1_000_000)
    return path


def test_the_whole_index_takes_less_than_a_gigabyte(folder):
    command = [sys.executable, str(SCRIPT), "--child", str(folder)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert (found["images"], found["identities"]) == (10_000_000, 1_000_000)
    assert found["peak_memory_mib"] < 1000


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [{}, {"window_shards": 64}, {"sampler": "camera"}], ids=["whole", "windows", "cameras"]
)
def test_a_batch_draws_the_same_few_numbers_at_any_step(folder, monkeypatch, config):
    plan = Plan(select_training(ShardIndex.open(folder), "train"), PlanConfig(**config), seed=0)
    real, drawn = tacaf.draws.philox, []

    def counted(counter, key):
        found = real(counter, key)
        drawn.append(found[0].size)
        return found

    monkeypatch.setattr(tacaf.draws, "philox", counted)
    counts = []
    for step in (0, 1, 100_000, plan.steps_per_epoch - 1):
        drawn.clear()
        batch = plan.global_batch(3, step)
        counts.append(sum(drawn))
        labels = np.unique(batch.label_B)
        assert len(labels) == 8
        for row, label in zip(batch.row_B, batch.label_B, strict=True):
            assert row // 10 == label
    assert max(counts) < 3000, "of a million identities and ten million images"


@pytest.mark.slow
def test_windows_of_a_large_set(folder):
    plan = Plan(select_training(ShardIndex.open(folder), "train"), PlanConfig(window_shards=64), seed=0)
    shards = set()
    for step in range(200):
        batch = plan.global_batch(0, step)
        shards |= set((batch.label_B // bench_index.IDENTITIES_OF_A_SHARD).tolist())
    ahead = set(plan.shards_ahead(0, 0, plan.steps_per_epoch).tolist())
    assert len(ahead) == 128
    assert 50 < len(shards) <= 64, "1600 identities of a window of 41,600"
    assert shards <= ahead
