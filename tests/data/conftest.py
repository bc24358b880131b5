"""The small set's index and a plan on it, for the tests of the pipelines."""

import pytest

from tacaf.data.index import ShardIndex, select_training
from tacaf.data.plan import Plan, PlanConfig


@pytest.fixture(scope="session")
def index(sysu_shards) -> ShardIndex:
    return ShardIndex.open(sysu_shards)


@pytest.fixture(scope="session")
def plan(index) -> Plan:
    return Plan(select_training(index, "trainval"), PlanConfig(identities_per_batch=4, images_per_identity=2), seed=5)
