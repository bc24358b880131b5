"""bench_ranks.py: two ranks and two ways give a row each, and no figures where the ways differ."""

import json
import subprocess
import sys

import pytest

from perf import bench_ranks
from perf.bench_ranks import ROOT
from tacaf.child_processes import child_environment

SMALL = (
    "model.backbone={width: 8, blocks: [1, 1, 1, 1]}",
    "model.ipcam={node_width: 16, attention_width: 8, pair_width: 8}",
    "data.augment={height: 96, width: 48}",
    "data.plan={identities_per_batch: 4, images_per_identity: 2}",
)


def test_rows_of_two_ranks(tmp_path):
    file = tmp_path / "ranks.json"
    settings = [word for value in SMALL for word in ("--set", value)]
    words = ["--ranks", "2", "--ways", "ddp", "1", "--rounds", "1", "--json", str(file), *settings]
    done = subprocess.run(
        [sys.executable, "perf/bench_ranks.py", *words],
        cwd=ROOT,
        env=child_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())["rows"]
    assert [row["way"] for row in rows] == ["DDP", "ZeRO 1"]
    for row in rows:
        assert row["ranks"] == 2
        assert row["communication_ms"] > 0
        assert row["step_ms"] == pytest.approx(sum(row[f"{phase}_ms"] for phase in bench_ranks.PHASES))


def test_no_figures_where_the_ways_differ():
    row = {"way": "DDP", "ranks": 1, "loss": 3.0}
    bench_ranks.check([row, {**row, "ranks": 2, "loss": 3.001}])
    with pytest.raises(SystemExit, match=r"ZeRO 1 on 1 3\.10000"):
        bench_ranks.check([row, {**row, "way": "ZeRO 1", "loss": 3.1}])
