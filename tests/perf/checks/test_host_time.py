"""The host's time: every op is timed both ways, and the ops are left as they were."""

import json

import pytest

pytest.importorskip("triton", minversion="3.6")
from perf.checks import host_time
from perf.checks.host_time import OPS


@pytest.mark.slow
def test_every_op_is_timed_both_ways(tmp_path, capsys):
    file = tmp_path / "host.json"
    assert host_time.main(["--rounds", "1", "--calls", "2", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["op"] for row in rows] == ["align", "gem_pyramid", "ring_aggregate", "batch_norm_relu"]
    assert all(row["triton_us"] > 0 and row["remembered_us"] > 0 for row in rows)
    assert all(row["op"] in capsys.readouterr().out for row in rows[:1])
    assert {op.choose_path.__module__ for op in OPS} == {"kernels.common.path"}, "the ops were left on the fake GPU"


def test_no_rounds_are_refused(capsys):
    assert host_time.main(["--rounds", "0"]) == 2
    assert "at least 1 in --rounds, got 0" in capsys.readouterr().err
