"""The kernel benchmark's table and picture say what its result file says."""

import json

from perf import plot
from perf.bench_kernels import COLUMNS


def result(complete=True):
    def row(provider, name, ms, ratio):
        values = (
            "soft_align",
            provider,
            name,
            "fp32",
            {"B": 4, "L": 9},
            ms,
            ms,
            ms,
            None,
            ratio,
            None,
            1.5,
            2**20,
            1e9,
            0.25,
        )
        return dict(zip(COLUMNS, (*values, None, None, None), strict=True))

    rows = [row(*one) for name in plot.PASSES for one in (("eager", name, 8.0, 1.0), ("cpu path", name, 2.0, 4.0))]
    environment = {
        "gpus": [],
        "cpu": "Some CPU",
        "torch_threads": 2,
        "commit": "abc",
        "started": "2026-01-01",
        "command": "bench",
        "versions": {"python": "3.11", "torch": "2.13", "triton": None},
    }
    ceilings = {"copy_bytes_per_s": 1e10, "matrix_flops_per_s": 1e11}
    return {"environment": environment, "device": "cpu", "ceilings": ceilings, "complete": complete, "rows": rows}


def test_table_and_picture(tmp_path, capsys):
    path = tmp_path / "kernels.json"
    path.write_text(json.dumps(result()))
    assert plot.main([str(path)]) == 0
    text = path.with_suffix(".md").read_text()
    assert "| soft_align | B=4 L=9 | fp32 | cpu path | forward | 2.000 / 2.000 / 2.000 | - | 4.00 | - | 1.5 |" in text
    assert "Commit abc" in text
    assert "Not complete" not in text
    bars = [bar.get_width() for bar in plot.picture(result()).axes[0].patches]
    assert bars == [1.0, 0.25], "time as a multiple of eager's"
    assert "<svg" in path.with_suffix(".svg").read_text()


def test_a_partial_result_never_looks_whole():
    assert "Not complete" in plot.table(result(complete=False))


def test_what_failed_is_listed_with_its_reason_and_not_drawn():
    found = result()
    found["rows"].append(
        {
            **{name: found["rows"][0][name] for name in ("op", "dtype", "shape")},
            "provider": "compiled",
            "error": "RuntimeError: no",
        }
    )
    assert "- soft_align B=4 L=9 fp32 compiled: RuntimeError: no" in plot.table(found)
    assert len(plot.picture(found).axes[0].patches) == 2


def test_another_file_is_refused(tmp_path, capsys):
    path = tmp_path / "evaluation.json"
    path.write_text('{"results": []}')
    assert plot.main([str(path)]) == 2
    assert "perf/bench_kernels.py" in capsys.readouterr().err
    assert not path.with_suffix(".md").exists()
