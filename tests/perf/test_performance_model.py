"""The performance model: sums that can be checked by hand, and columns that never mix prediction and measurement."""

import json

import pytest

from perf import performance_model as model
from perf.cases import both_case, cases, gem_pyramid_case
from perf.parts.launches import LAUNCHES, Launch, Shape
from perf.parts.step_model import STEPS

H100, H200 = model.GPUS
CASE = both_case(64, 162, 2048)


def result(gpu="NVIDIA H100 80GB HBM3", **more):
    shape, facts = CASE.shape, {"gpus": [gpu] if gpu else [], "commit": "abc", "started": "2026-01-01"}
    row = {"op": "alignment", "shape": shape, "dtype": "bf16", "provider": "triton", "pass": "forward"}
    rows = [{**row, "p50_ms": 9.0, "graph_ms": 0.777}, {**row, "pass": "backward", "p50_ms": 8.125, "graph_ms": None},
            {"op": "alignment", "shape": shape, "dtype": "bf16", "provider": "eager", "error": "no"},
            {"name": "whole, definitions", "step_ms": 61.25}]  # fmt: skip
    return {"environment": facts, "rows": rows, **more}


@pytest.fixture
def made(tmp_path):
    """Call it with the content of result files: the document."""

    def run(*contents):
        paths = [tmp_path / f"{place}.json" for place in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_text(json.dumps(content))
        out = tmp_path / "gpu.md"
        measured = ["--measured", *map(str, paths)] if paths else []
        assert model.main([*measured, "--out", str(out)]) == 0
        return out.read_text()

    return run


def test_a_launch_takes_as_long_as_its_slowest_limit():
    assert model.launch_us(Launch("x", memory_bytes=3e6), H100, 1e9) == pytest.approx(1 / 0.85 + 1.5)
    assert model.launch_us(Launch("x", memory_bytes=3e6, flops=1e9), H100, 1e9) == pytest.approx(2 + 1.5)
    assert model.launch_us(Launch("x", waiting_us=7, flops=1e9, fixed_us=3), H100, 1e9) == pytest.approx(11.5)
    assert model.launch_us(Launch("x", cache_bytes=5.5e6), H100, 1e9) == pytest.approx(1 / 0.78 + 1.5)


def test_small_maps_stay_in_the_cache():
    moved = Launch("x", memory_bytes=1e8)
    assert model.launch_us(moved, H100, 2e7) < model.launch_us(moved, H100, 4e7)


def test_the_pyramid_by_hand():
    """One read of 64 x 162 x 2048 bf16 numbers at 85 % of the copy's rate, and a gap."""
    expected_us = 64 * 162 * 2048 * 2 / 3.0e12 / 0.85 * 1e6 + 1.5
    assert model.ours_ms(gem_pyramid_case(64), "forward", H100) == pytest.approx(expected_us / 1000)


def test_scores_read_their_maps_once_for_every_tile_row_and_column():
    scores = LAUNCHES["soft_align", "forward"][1](Shape(64, 162, 2048))
    assert scores.cache_bytes == 64 * 3 * (162 + 162) * 2048 * 2
    assert scores.flops == 2 * 64 * 192 * 192 * 2048


def test_nothing_is_predicted_faster_than_its_least_time():
    for case in cases("cuda"):
        for gpu in model.GPUS:
            for pass_ in model.PASSES:
                assert model.ours_ms(case, pass_, gpu) > model.least_ms(case, pass_, gpu)


def test_an_h200_is_never_predicted_slower():
    for case in cases("cuda"):
        for pass_ in model.PASSES:
            assert model.ours_ms(case, pass_, H200) <= model.ours_ms(case, pass_, H100)


def test_without_results_every_measured_cell_says_so(made):
    text = made()
    assert "Nothing was measured yet" in text
    lines = [line for line in text.splitlines() if line.startswith("| alignment")]
    assert len(lines) == 2 * 2 * len([case for case in cases("cuda") if case.op == "alignment"])
    assert all(line.endswith("| not measured | not measured | not measured |") for line in lines)
    for step in STEPS:
        line = next(line for line in text.splitlines() if line.startswith(f"| {step.name} |"))
        assert line.count("not measured") == 2


def test_measurements_fill_their_own_cells_and_no_other(made):
    text = made(result())
    (forward,) = (line for line in text.splitlines() if "| 0.777 |" in line)
    assert forward.startswith("| alignment | B=64 N=128 L=162 C=2048 | forward |")
    (backward,) = (line for line in text.splitlines() if "| 8.125 |" in line)
    assert "| backward |" in backward, "no graph was captured, so the median of single calls"
    (step,) = (line for line in text.splitlines() if "| 61.2 |" in line)
    assert step.startswith("| whole, definitions |")
    assert "commit abc" in text
    h100, h200 = text.split("## Every op on an H200")
    assert "0.777" in h100
    assert "0.777" not in h200


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (result(gpu=None), "a CPU"),
        (result(gpu="NVIDIA A100"), "NVIDIA A100"),
        (result(rehearsal=True), "a rehearsal"),
        ({"results": []}, "expected a result of bench_kernels.py"),
    ],
)
def test_a_result_of_another_kind_is_refused_and_nothing_is_written(content, named, tmp_path, capsys):
    path, out = tmp_path / "x.json", tmp_path / "gpu.md"
    path.write_text(json.dumps(content))
    assert model.main(["--measured", str(path), "--out", str(out)]) == 2
    assert named in capsys.readouterr().err
    assert not out.exists()


def test_the_committed_table_is_what_the_model_says(made):
    """Only while nothing was measured; afterwards the table also holds results that are named in it."""
    committed = model.OUT.read_text()
    if "Nothing was measured yet" in committed:
        assert committed == made()
