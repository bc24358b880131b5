"""The scoring bench at a small size: a streamed gallery is measured, checked and written beside what stood there."""

import json

import numpy as np
import pytest

from perf import bench_evaluation
from perf.bench_evaluation import main
from perf.parts.streamed_gallery import StreamedCase, _refuse_wrong_places, _write
from perf.parts.usual_scoring import usual_rerank
from tacaf.evaluation.rerank import Distances, Rerank, reranked


@pytest.mark.slow
def test_a_streamed_gallery_is_measured_and_other_sections_stay(tmp_path):
    (tmp_path / "out.json").write_text('{"ranking": 1}')
    sizes = ["--queries", "60", "--gallery", "3000", "--width", "32", "--folder", str(tmp_path)]
    main(["--streamed", *sizes, "--json", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["ranking"] == 1
    row = found["streamed_32"]["results"][0]
    assert (row["queries"], row["gallery"], row["width"]) == (60, 3000, 32)
    assert row["peak_resident_mib"] > 0
    assert 0 < row["scores"]["mAP"] <= 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"], "the gallery was temporary"


@pytest.mark.slow
def test_no_figure_on_wrong_places(tmp_path):
    case = StreamedCase(queries=10, gallery=400, width=16)
    _write(case, tmp_path)
    wrong = {"first_Q": np.full(10, 390), "average_precision_Q": np.ones(10), "inverse_penalty_Q": np.full(10, 0.05)}
    np.savez(tmp_path / "ranks.npz", **wrong, matches_Q=np.full(10, 20), eligible_Q=np.full(10, 400))
    with pytest.raises(SystemExit, match="error: expected a place in"):
        _refuse_wrong_places(tmp_path)


def test_the_usual_reranking_is_ours():
    dice = np.random.default_rng(0)
    features = dice.normal(size=(10, 8))[dice.integers(0, 10, 70)] + 0.5 * dice.normal(size=(70, 8))
    original = Distances.of(features, "cosine")
    found = np.concatenate([part for _, part in reranked(original, 20, Rerank(7, 3, 0.3))])
    assert np.abs(usual_rerank(original.matrix_NN, 20, Rerank(7, 3, 0.3)) - found).max() < 1e-6


def test_a_damaged_file_is_refused_before_anything_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_evaluation, "loops", lambda repeats: pytest.fail("measured before the file was read"))
    for content in ("{", "[1]"):
        (tmp_path / "found.json").write_text(content)
        assert main(["--json", str(tmp_path / "found.json")]) == 2
        assert "found.json" in capsys.readouterr().err
        assert (tmp_path / "found.json").read_text() == content
