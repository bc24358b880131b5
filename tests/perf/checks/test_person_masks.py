"""The silhouettes are where the people are drawn, and the figure is an area under a ROC curve."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from perf.checks import person_masks
from perf.checks.known_people import known_picture, moved_pair
from shards.pedestrians.benchmarks import BENCHMARKS
from shards.pedestrians.scene import draw_camera, draw_view, render
from shards.pedestrians.wardrobe import draw_person
from tacaf.vocabulary import Modality
from tests.train.finished import write_model


def test_the_silhouette_is_what_does_not_change_with_the_place():
    """The same shot in front of two places: outside of the person the pictures differ, on the person they agree."""
    benchmark = BENCHMARKS["plain_1"]
    still = replace(benchmark, difficulty=replace(benchmark.difficulty, noise=0.0, blur=0.0, occlusion=0.0))
    pixels, silhouette = known_picture(still, 601, 1, Modality.VISIBLE)
    camera = draw_camera(still.seed, 1, 1, Modality.VISIBLE, still.difficulty)
    view = draw_view(still.seed, 601, 1, 1, camera, still.difficulty)
    elsewhere = replace(camera, scene_key=camera.scene_key + 1)
    other = render(
        draw_person(still.seed, 601),
        replace(view, occluder="none", clutter=9),
        elsewhere,
        Modality.VISIBLE,
        still.height,
    )
    change = np.abs(pixels.astype(int) - other).max(axis=2)
    assert silhouette.shape == change.shape
    assert 0.1 < silhouette.mean() < 0.6
    assert np.median(change[silhouette > 0.99]) <= 3
    assert np.median(change[silhouette == 0]) > 10


def test_a_moved_pair_is_one_silhouette_moved():
    """The infrared silhouette is the visible one, a third of the height lower, whatever the pictures' sizes."""
    (visible, upper), (infrared, lower) = moved_pair(BENCHMARKS["plain_1"], 3, 1 / 3)
    assert visible.shape[:2] == upper.shape
    assert infrared.shape[:2] == lower.shape
    rows = np.linspace(0, 1, 90, endpoint=False) + 1 / 180
    shares = [np.interp(rows, (np.arange(len(cut)) + 0.5) / len(cut), cut.sum(axis=1)) for cut in (upper, lower)]
    top, moved, unmoved = (part / part.mean() for part in (shares[0][:60], shares[1][30:], shares[1][:60]))
    assert np.abs(top - moved).mean() < 0.03  # of pictures of unlike widths
    assert np.abs(top - unmoved).mean() > 0.3
    assert upper[0].any()  # the head is cut off
    assert (infrared[..., 0] == infrared[..., 1]).all()
    assert (visible[..., 0] != visible[..., 1]).any()


def test_ranked_above():
    mask = torch.tensor([0.9, 0.1, 0.5, 0.5])
    assert person_masks.ranked_above(mask, torch.tensor([True, False, False, False])) == 1
    assert person_masks.ranked_above(mask, torch.tensor([False, True, False, False])) == 0
    assert person_masks.ranked_above(mask, torch.tensor([False, False, True, False])) == pytest.approx((1 + 0.5) / 3)
    assert person_masks.ranked_above(mask, torch.ones(4, dtype=torch.bool)) is None


def test_a_run_is_measured(sysu_shards, tmp_path, capsys):
    write_model(tmp_path / "run", sysu_shards)
    words = ["--run", str(tmp_path / "run"), "--people", "4", "--json", str(tmp_path / "found.json")]
    assert person_masks.main(words) == 0, capsys.readouterr()
    (run,) = json.loads((tmp_path / "found.json").read_text())["runs"]
    for layers in (run["masks"]["visible"], run["masks"]["infrared"]):
        for kinds in layers.values():
            assert set(kinds) == {"norm", "deviation"}
            assert all(0 <= value <= 1 for value in kinds.values())
            assert kinds["norm"] != kinds["deviation"]
    assert "layer 3  norm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "says"),
    [(["--people", "1"], "--people of at least 2, got 1"), ([], "model.safetensors does not exist")],
)
def test_wrong_words_are_refused(tmp_path, capsys, more, says):
    assert person_masks.main(["--run", str(tmp_path), *more]) == 2
    assert says in capsys.readouterr().err
