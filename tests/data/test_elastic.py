"""The same pixels and labels in every global batch: for any number of ranks, after a resume, however they are read."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from shards.writer import Record, pack
from tacaf.data.augment import AugmentConfig
from tacaf.data.config import ReadingConfig
from tacaf.data.index import ShardIndex, select_training
from tacaf.data.plan import Plan, PlanConfig
from tacaf.data.storage import RemoteConfig
from tacaf.data.training_pipeline import TrainingPipeline
from tacaf.data.training_source import TrainingSource
from tacaf.vocabulary import Modality
from tests.data.server import serving
from tests.shards.raw import image_bytes

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


LANES = {"identities_per_batch": 8, "lanes": 4, "window_shards": 1}


@pytest.fixture(scope="module")
def lane_shards(tmp_path_factory) -> Path:
    """60 identities of four to eight images, noise of 30 kB each, in about ten shards."""
    root = tmp_path_factory.mktemp("lanes")
    records = []
    for pid in range(60):
        for modality in Modality:
            for number in range(1, 3 + (pid + modality.code) % 3):
                path = root / f"{pid}_{modality.code}_{number}.bmp"
                path.write_bytes(image_bytes(len(records), "BMP", (100, 100)))
                records.append(Record(path, pid, 1, modality, None, number))
    return pack(
        records, root / "set", "lanes", {"trainval": range(60)}, root=root, source="noise", shard_mib=1, workers=1
    ).folder


@pytest.fixture(scope="module")
def lane_index(lane_shards) -> ShardIndex:
    found = ShardIndex.open(lane_shards)
    assert 8 <= len(found.shards) <= 12
    return found


@pytest.fixture(scope="module")
def in_lanes(lane_index) -> list[str]:
    found = hashes(lane_index, plan_of(lane_index, **LANES))
    assert len(set(found)) == len(found) > plan_of(lane_index, **LANES).steps_per_cycle, "more than a cycle"
    return found


@pytest.mark.parametrize(("ranks", "first", "workers"), [(2, 0, 0), (4, 0, 2), (1, 5, 0), (2, 9, 0)])
def test_lanes_on_any_number_of_ranks_and_after_a_resume(lane_index, in_lanes, ranks, first, workers):
    assert hashes(lane_index, plan_of(lane_index, **LANES), ranks, first, workers=workers) == in_lanes[first:]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_rank_fetches_the_shards_of_its_lanes_alone(lane_shards, lane_index, tmp_path, ranks):
    """From a server, into a cache of its own that holds two windows of each lane; the images are those of a folder."""
    plan = plan_of(lane_index, **LANES)
    columns = sum(path.stat().st_size for path in (lane_shards / "columns").iterdir())
    room = columns + sum(sorted(shard.size for shard in lane_index.shards)[-2 * 4 // ranks :])
    fetched_by_all = 0
    with serving(lane_shards) as server:
        for rank in range(ranks):
            server.asked.clear()
            config = RemoteConfig(cache=tmp_path / str(rank), limit_gib=(room + 1) / 2**30)
            source = TrainingSource(plan, SIZE, rank=rank, ranks=ranks)
            remote = TrainingPipeline(ShardIndex.open(server.address, config), source, ReadingConfig(threads=1))
            local = TrainingPipeline(lane_index, source, ReadingConfig(threads=1))
            used: set[int] = set()
            for _ in range(plan.steps_per_cycle):
                batch = next(remote)
                assert torch.equal(batch.images_BCHW, next(local).images_BCHW)
                used |= set(lane_index.columns["shard"][batch.row_B.numpy()].tolist())
            fetched = {n for n, shard in enumerate(lane_index.shards) if server.asked[shard.name]}
            known = [source.shards_ahead(number) for number in range(plan.steps_per_cycle + 4)]  # the graph is ahead
            assert used <= fetched <= set(np.concatenate(known).tolist())
            fetched_by_all += len(fetched)
    assert fetched_by_all <= len(lane_index.shards) + plan.config.lanes - 1, (
        "each shard once, and once more at a border"
    )
