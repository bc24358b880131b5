"""The same pixels and labels in every global batch: for any number of ranks, after a resume, however they are read."""

import hashlib

import numpy as np
import pytest

from tacaf.data.augment import AugmentConfig
from tacaf.data.config import ReadingConfig
from tacaf.data.index import ShardIndex, select_training
from tacaf.data.plan import Plan, PlanConfig
from tacaf.data.storage import RemoteConfig
from tacaf.data.training_pipeline import TrainingPipeline
from tacaf.data.training_source import TrainingSource
from tests.data.server import serving

pytestmark = pytest.mark.slow  # many pipelines

SIZE = AugmentConfig(height=32, width=16, pad=2)
SEED = 11


def plan_of(index: ShardIndex, **config) -> Plan:
    settings = {"identities_per_batch": 48, "images_per_identity": 2, "pair_group": 2, **config}
    return Plan(select_training(index, "trainval"), PlanConfig(**settings), SEED)


def hashes(index: ShardIndex, plan: Plan, ranks: int = 1, first: int = 0, **options) -> list[str]:
    """One hash for each global batch of an epoch from step `first` on: pixels, labels, groups, rows by position."""
    pipelines = [
        TrainingPipeline(
            index,
            TrainingSource(plan, SIZE, rank=rank, ranks=ranks),
            ReadingConfig(threads=1, **options),
            start=(0, first),
        )
        for rank in range(ranks)
    ]
    found = []
    for _ in range(first, plan.steps_per_epoch):
        parts = [next(pipeline) for pipeline in pipelines]
        order = np.argsort(np.concatenate([part.position_B for part in parts]))
        total = hashlib.sha256()
        for name in ("images_BCHW", "label_B", "branch_B", "group_B", "position_B", "row_B"):
            total.update(np.concatenate([getattr(part, name) for part in parts])[order].tobytes())
        found.append(total.hexdigest())
    return found


@pytest.fixture(scope="module")
def index(sysu_shards_many) -> ShardIndex:
    return ShardIndex.open(sysu_shards_many)


@pytest.fixture(scope="module")
def expected(index) -> list[str]:
    found = hashes(index, plan_of(index))
    assert len(set(found)) == len(found) >= 4
    return found


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_any_number_of_ranks(index, expected, ranks):
    assert hashes(index, plan_of(index), ranks) == expected


@pytest.mark.parametrize("ranks", [1, 3])
def test_after_a_resume(index, expected, ranks):
    assert hashes(index, plan_of(index), ranks, first=2) == expected[2:]


@pytest.mark.parametrize(("ranks", "first"), [(1, 0), (2, 1)])
def test_read_beside_the_training(index, expected, ranks, first):
    assert hashes(index, plan_of(index), ranks, first, workers=2) == expected[first:]


@pytest.mark.parametrize("workers", [0, 3])
def test_from_a_server_through_windows(index, sysu_shards_many, tmp_path, workers):
    """A cache that holds two windows and not the set gives what the folder gives."""
    plan = plan_of(index, window_shards=1, identities_per_batch=8)
    sizes = sorted(shard.size for shard in index.shards)
    columns = sum(path.stat().st_size for path in (sysu_shards_many / "columns").iterdir())
    room = columns + sizes[-1] + sizes[-2]
    assert room < columns + sum(sizes)
    with serving(sysu_shards_many) as server:
        remote = ShardIndex.open(server.address, RemoteConfig(cache=tmp_path, limit_gib=(room + 1) / 2**30))
        assert hashes(remote, plan, workers=workers) == hashes(index, plan)


def test_another_seed_window_or_sampler_is_another_run(index, expected):
    first = {
        "sampler": hashes(index, plan_of(index, sampler="camera"), first=3)[0],
        "window": hashes(index, plan_of(index, window_shards=1), first=3)[0],
        "as it was": expected[3],
    }
    assert len(set(first.values())) == 3
