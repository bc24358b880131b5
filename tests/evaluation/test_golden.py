"""SYSU-MM01 scores against what the data set authors' own program gave, to 1e-6; the counts of the real test."""

import json
import runpy
import sys

import numpy as np
import pytest

from tacaf.evaluation.__main__ import main
from tacaf.evaluation.features import FeatureSet, load_features
from tacaf.evaluation.score import score
from tacaf.evaluation.setting import choose_setting
from tacaf.evaluation.trials import make_trials
from tacaf.vocabulary import InputError, Modality

SETTINGS = [(mode, shots) for mode in ("all_search", "indoor_search") for shots in (1, 10)]


@pytest.fixture(scope="module")
def authors(golden, tmp_path_factory):
    """(feature file, expected figures by setting, folder of the permutations)."""
    folder, out = golden / "sysu_mm01", tmp_path_factory.mktemp("golden") / "F.npz"
    arguments, sys.argv = sys.argv, ["make_features.py", "--seed", "0", "--out", str(out)]
    try:
        runpy.run_path(str(folder / "make_features.py"), run_name="__main__")
    finally:
        sys.argv = arguments
    expected = json.loads((folder / "expected_seed0.json").read_text())["results"]
    return out, {(result["mode"], result["shots"]): result for result in expected}, folder


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "shots"), SETTINGS)
def test_the_scores_are_the_authors(authors, mode, shots):
    out, expected, folder = authors
    found = score(load_features(out), "sysu_mm01", mode=mode, shots=shots, splits=folder, metric="euclidean")
    assert found["gallery_draw"] == "official"
    for name, value in expected[mode, shots]["mean"].items():
        assert found["mean"][name] == pytest.approx(value, abs=1e-6), name
    assert len(found["trials"]) == len(expected[mode, shots]["trials"]) == 10
    for ours, theirs in zip(found["trials"], expected[mode, shots]["trials"], strict=True):
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, abs=1e-6), name


def test_the_command_gives_the_same(authors, tmp_path, capsys):
    out, expected, folder = authors
    setting = ["--protocol", "sysu_mm01", "--mode", "all_search", "--shots", "1", "--metric", "euclidean"]
    command = ["score", "--features", out, *setting, "--splits", folder, "--json", tmp_path / "out.json"]
    assert main([str(word) for word in command]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    for name, value in expected["all_search", 1]["mean"].items():
        assert found["mean"][name] == pytest.approx(value, abs=1e-6), name
    assert "official draw" in capsys.readouterr().out


@pytest.mark.parametrize("draw", ["official", "literature"])
def test_the_counts_of_the_real_test_set(authors, draw):
    out, _, folder = authors
    features = load_features(out)
    gallery = {(mode, shots): _sizes(features, folder, mode, shots, draw) for mode, shots in SETTINGS}
    assert gallery["all_search", 1] == {301}
    assert gallery["indoor_search", 1] == {112}
    assert gallery["all_search", 10] == {3010}
    assert gallery["indoor_search", 10] == {1120}
    assert np.count_nonzero(features.modality == Modality.INFRARED.code) == 3803
    found = score(features, "sysu_mm01", mode="indoor_search", splits=folder, gallery_draw=draw)
    assert (found["queries"], found["valid_queries"]) == (3803, 2208)


def _sizes(features: FeatureSet, folder, mode: str, shots: int, draw: str) -> set[int]:
    setting = choose_setting("sysu_mm01", mode=mode, shots=shots, gallery_draw=draw, splits=folder)
    return {len(trial.gallery_rows) for trial in make_trials(features, setting)}


def test_the_official_draw_refuses_another_set(authors):
    out, _, folder = authors
    whole = load_features(out)
    kept = np.flatnonzero(~((whole.camid == 1) & (whole.number == 2)))
    cut = FeatureSet(*(getattr(whole, name)[kept] for name in ("features", "pid", "camid", "modality", "number")))
    with pytest.raises(InputError, match=r"pid \d+, camera 1 "):
        score(cut, "sysu_mm01", splits=folder)
