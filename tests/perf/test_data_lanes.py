"""What ranks fetch, counted: lanes divide it among them, and the counting agrees with the batches themselves."""

import json

import numpy as np
import pytest

from perf import data_lanes
from perf.data_lanes import EPOCH, IMAGE_BYTES, Fetching, SizedSet, count, count_rank, plans, sized_set, table
from tacaf.checkout import ROOT
from tacaf.data.plan import Plan

LANES = 8


@pytest.fixture(scope="module")
def small() -> SizedSet:
    return sized_set(600, shard_bytes=6_000_000)


@pytest.fixture(scope="module")
def plan_of(small) -> dict[str, Plan]:
    return {name: Plan(small.training_set, config, seed=0) for name, config in plans(16, LANES, window=8).items()}


def test_the_set_is_cut_as_packing_does(small):
    assert small.bytes_N.sum() == sum(small.training_set.images) * IMAGE_BYTES
    assert len(small.bytes_N) > 4 * LANES
    assert (small.bytes_N[:-1] > 6_000_000 - 36 * IMAGE_BYTES).all()
    assert (small.bytes_N < 6_000_000 + 36 * IMAGE_BYTES).all()


@pytest.mark.parametrize("name", ["no lanes, windows", "lanes, windows", "lanes, no windows"])
def test_what_is_counted_is_what_the_batches_need(small, plan_of, name):
    """Within bounds that follow from a rank's batches alone."""
    plan = plan_of[name]
    fetched, largest = count_rank(plan, small.bytes_N, rank=1, ranks=4)
    steps = plan.steps_per_epoch
    used = [plan.rank_batch(EPOCH, step, 1, 4).label_B for step in range(steps)]
    shards = np.unique(small.training_set.shard_I[np.concatenate(used)])
    needed = small.bytes_N[shards].sum()
    cycles = steps / plan.steps_per_cycle
    if name == "lanes, no windows":
        assert fetched <= largest
        assert needed <= largest
    else:
        assert needed * 0.9 < fetched < needed * (cycles + 1), "each shard about once a cycle"
        assert largest < needed


def test_lanes_divide_what_is_fetched_and_held(small, plan_of):
    whole = small.bytes_N.sum() / 1e9
    shared = 1 + (LANES - 1) / len(small.bytes_N)  # shards in which a lane ends
    for ranks in (1, 2, 4, 8):
        found = {name: count(name, plan, small.bytes_N, ranks) for name, plan in plan_of.items()}
        cycles = plan_of["lanes, windows"].steps_per_epoch / plan_of["lanes, windows"].steps_per_cycle
        without, windows, alone = (found[name] for name in ("no lanes, windows", "lanes, windows", "lanes, no windows"))
        assert without.fetched_gb == pytest.approx(cycles * whole, rel=0.15), "everything, on every rank"
        assert windows.fetched_gb == pytest.approx(cycles * whole * shared / ranks, rel=0.15)
        assert windows.cache_gb <= without.cache_gb / ranks * 1.25
        assert alone.fetched_gb <= whole * shared / ranks * 1.25, "a rank's share once an epoch, whatever the cycles"
        assert windows.shown_gb * ranks == pytest.approx(without.shown_gb * ranks)


def test_the_command_writes_its_table(monkeypatch, tmp_path, capsys):
    for name, value in {"IDENTITIES": 60_000, "BATCH": 16, "LANES": 4, "WINDOW": 8, "RANKS": (1, 4)}.items():
        monkeypatch.setattr(data_lanes, name, value)
    monkeypatch.setattr(Plan, "shards_ahead", lambda *_: np.array([0]))  # the counting is tried above
    assert data_lanes.main(["--json", str(tmp_path / "lanes.json")]) == 0
    assert capsys.readouterr().out.count("\n| ") == 6
    result = json.loads((tmp_path / "lanes.json").read_text())
    assert [row["ranks"] for row in result["rows"]] == [1] * 3 + [4] * 3
    assert result["case"]["identities"] == 60_000


def test_the_page_shows_the_table_of_the_result_file():
    rows = json.loads((ROOT / "perf/results/data_lanes.json").read_text())["rows"]
    assert table([Fetching(**row) for row in rows]) in (ROOT / "docs/scale.md").read_text()
