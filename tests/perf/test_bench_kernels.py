"""The kernel benchmark: its plain formulas mean the same as the ops, and a wrong op gives no figure."""

from dataclasses import replace

import pytest
import torch

from perf import bench_kernels, cases, gpu_suite

SMALL = [
    cases.soft_align_case(4, 9, 16),
    cases.align_distance_case(4, 9, 16),
    cases.both_case(4, 9, 16),
    cases.gem_pyramid_case(2),
    cases.ring_aggregate_case(2),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.op)
def test_every_provider_computes_the_definition(case):
    bench_kernels.check(case, torch.float32, "cpu")
    for rival in (case.eager, case.sdpa):
        assert rival is None or max(bench_kernels.errors(case, torch.float32, "cpu", rival)) < 1e-4


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.op)
def test_a_wrong_result_gives_no_figure(case):
    def off(*tensors):
        result = case.ours(*tensors)
        return tuple(x * 1.01 for x in result) if isinstance(result, tuple) else result * 1.01

    with pytest.raises(SystemExit, match="no figure on a wrong result"):
        bench_kernels.check(replace(case, ours=off), torch.float32, "cpu")


def test_check_goes_through_every_dtype_and_prints_no_figure(monkeypatch, capsys):
    monkeypatch.setattr(bench_kernels, "cases", lambda device: SMALL[:2])
    assert bench_kernels.main(["--device", "cpu", "--check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(line.startswith("right: ") for line in lines)
    assert {line.split()[-1] for line in lines} == {"bf16", "fp16", "fp32"}


def test_rows_hold_the_promised_columns():
    case = SMALL[0]
    ceiling = {"copy_bytes_per_s": 1e10, "matrix_flops_per_s": 1e11}
    bench_kernels.cpu_peak_mib, kept = (lambda *_: 1.0), bench_kernels.cpu_peak_mib
    try:
        rows = list(bench_kernels.measure(case, 0, "fp32", "cpu", ceiling, 0.0))
    finally:
        bench_kernels.cpu_peak_mib = kept
    assert {(row["provider"], row["pass"]) for row in rows} == {
        (provider, name) for provider in ("eager", "cpu path") for name in ("forward", "backward", "both")
    }
    for row in rows:
        assert tuple(row) == bench_kernels.COLUMNS
        assert row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
    forward = rows[0]
    assert forward["flops"] == 4 * 4 * 9 * 9 * 16, "two products of N L L C, two operations each"
    assert forward["bytes"] == 2 * 4 * 9 * 16 * 4, "the maps read, the reconstruction written"
    both = {row["provider"]: row for row in rows if row["pass"] == "both"}
    assert both["eager"]["ratio_to_eager"] == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_the_suite_wants_a_gpu(tmp_path, capsys):
    assert gpu_suite.main(["--out", str(tmp_path / "out")]) == 2
    assert "expected a GPU, found none" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_part_that_fails_or_hangs_is_named(tmp_path):
    failed = gpu_suite.run_part("fails", ("-c", "import sys; print('why'); sys.exit(3)"), tmp_path, 60)
    assert failed["state"] == "failed with 3"
    assert "why" in (tmp_path / "fails.txt").read_text()
    assert "stopped" in gpu_suite.run_part("hangs", ("-c", "import time; time.sleep(60)"), tmp_path, 1)["state"]
    gpu_suite.write_summary(tmp_path, {"gpu": "none"}, [failed])
    assert "failed with 3" in (tmp_path / "summary.md").read_text()
