"""perf/bench_packing.py: it runs, states its circumstances, and prints no figure on a wrong result."""

import json

import pytest

from perf import bench_packing


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(bench_packing, "HEIGHT", 48)
    monkeypatch.setattr(bench_packing, "IMAGES_PER_CAMERA", 1)


WORDS = ["--identities", "8", "--copies", "2", "--shard-mib", "1", "--repeats", "1"]


@pytest.mark.slow
def test_a_run(tmp_path, capsys):
    (tmp_path / "here").mkdir()
    result = tmp_path / "results" / "packing.json"
    bench_packing.main([*WORDS, "--folder", str(tmp_path / "here"), "--json", str(result)])
    assert list((tmp_path / "here").iterdir()) == []
    found = json.loads(result.read_text())
    actions = [row["action"] for row in found["results"]]
    assert actions[:5] == ["tar -cf and sync", "sha256sum", "pack --workers 1", "verify --workers 1", "verify --quick"]
    assert all(row["slowest"] <= row["mb_per_s"] <= row["fastest"] for row in found["results"])
    assert {"cpu", "cpu_cores", "commit", "time", "repeats", "file_system"} <= set(found["circumstances"])
    assert found["set"]["images"] % 2 == 0, "every file twice"
    shown = capsys.readouterr().out
    assert all(action in shown for action in actions)


@pytest.mark.slow
def test_no_figure_on_a_wrong_result(tmp_path, monkeypatch, capsys):
    verified = []

    def spoiled(*where, **how):
        verified.append(where)
        return ["a problem"] if len(verified) > 1 else []

    monkeypatch.setattr(bench_packing, "verify", spoiled)
    assert bench_packing.main([*WORDS, "--folder", str(tmp_path), "--json", str(tmp_path / "result.json")]) == 2
    out, errors = capsys.readouterr()
    assert out == ""
    assert "a problem" in errors
    assert list(tmp_path.iterdir()) == []
