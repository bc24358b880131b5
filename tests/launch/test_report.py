"""Making a finished run's report again: every picture is there, and what does not fit is refused by name."""

import re
import shutil

import numpy as np
import pytest

from launch.report import main
from tacaf.evaluation.features import load_features
from tacaf.report.pictures import shrink
from tests.evaluation.sets import permutations_file
from tests.train.finished import write_model, write_scores


@pytest.fixture(scope="module")
def run(tmp_path_factory, sysu_shards):
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_scores(folder, write_model(folder, sysu_shards))
    return folder


@pytest.mark.slow
def test_the_report_holds_every_picture(run, sysu_shards, capsys):
    assert main(["--run", str(run)]) == 0
    assert capsys.readouterr().out == f"report: {run / 'report.html'}\n"
    page = (run / "report.html").read_text()
    for title in ("Loss", "first trial", "Distances of pairs of images", "Map of embeddings", "Correspondences"):
        assert f"{title}</h" in page
    lists = re.findall(r'<div class="list">(.*?)</div>', page, re.S)
    assert len(lists) == 2 + 1 + 1, "drawn, best, worst"
    assert all(1 < one.count("<img") <= 11 for one in lists)
    pairs = page[page.index(">Correspondences<") :]
    assert len(re.findall(r"✓ the same identity", pairs)) == len(re.findall(r"✗ another identity", pairs)) == 2
    assert pairs.count("<line ") == 4 * 6
    assert len(page) < 2**20
    first = (run / "report.html").read_bytes()
    assert main(["--run", str(run), "--shards", str(sysu_shards)]) == 0
    assert (run / "report.html").read_bytes() == first, "the same run, the same page"


@pytest.mark.slow
def test_the_page_names_features_that_are_not_the_runs_own(run, tmp_path):
    """The scores come from the run's results, whatever the pictures are made from."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.copyfile(run / "results" / "features.npz", tmp_path / "given.npz")
    assert main(["--run", str(copy)]) == 0
    assert ".npz" not in (copy / "report.html").read_text()
    assert main(["--run", str(copy), "--features", str(tmp_path / "given.npz")]) == 0
    assert "given.npz" in (copy / "report.html").read_text()


def test_validation_identities_are_shown_with_the_draw_they_were_scored_with(sysu_shards, tmp_path):
    """The official draw has permutations for the test identities alone; this file has them for nobody."""
    permutations_file(tmp_path / "rand_perm_cam.mat", [np.empty((0, 0))])
    values = ["data.split=train", "evaluation.split=val", f"evaluation.splits={tmp_path}"]
    config = write_model(tmp_path / "run", sysu_shards, 3, *values)
    write_scores(tmp_path / "run", config)
    assert main(["--run", str(tmp_path / "run")]) == 0
    assert "first trial" in (tmp_path / "run" / "report.html").read_text()


def test_what_does_not_fit_is_refused_and_the_page_stays(run, sysu_shards_many, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "report.html").write_text("the old page")
    features = load_features(run / "results" / "features.npz")
    narrow = type(features)(features.features[:, :5], features.pid, features.camid, features.modality, features.number)
    narrow.save(tmp_path / "narrow.npz")
    moved = type(features)(features.features, features.pid, features.camid, features.modality, features.number + 50)
    moved.save(tmp_path / "moved.npz")
    (tmp_path / "empty").mkdir()
    cases = [
        (["--run", str(tmp_path / "empty")], "expected a run folder with config.yaml"),
        (["--run", str(copy), "--shards", str(tmp_path)], f"no shard set in {tmp_path}"),
        (["--run", str(copy), "--features", str(tmp_path / "no.npz")], "no.npz does not exist"),
        (["--run", str(copy), "--features", str(tmp_path / "narrow.npz")], "got 5; give the features of this run"),
        (["--run", str(copy), "--features", str(tmp_path / "moved.npz")], "got one that is not there (row 0, pid"),
    ]
    for words, says in cases:
        assert main(words) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    assert (copy / "report.html").read_text() == "the old page"


def test_images_in_the_report_are_small():
    noise = np.random.default_rng(0).integers(0, 255, (800, 300, 3), dtype=np.uint8)
    data = shrink(noise)
    assert len(data) < 30_000
    assert data[:4] == b"RIFF"
