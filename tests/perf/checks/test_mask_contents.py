"""What a mask selects: the figures of masks that are known, of a run, and what is refused."""

import json
import re

import numpy as np
import pytest
import torch

from perf.checks import mask_contents
from perf.checks.mask_contents import cell_values, choose, correlation
from tacaf.data.index import ShardIndex
from tacaf.vocabulary import Modality
from tests.train.finished import write_model


def test_a_correlation_is_of_ranks():
    assert correlation(np.array([1, 2, 30]), np.array([0.1, 0.2, 0.3])) == pytest.approx(1)
    assert correlation(np.array([1, 2, 30]), np.array([0.3, 0.2, 0.1])) == pytest.approx(-1)
    assert np.isnan(correlation(np.ones(3), np.array([0.1, 0.2, 0.3])))


def test_the_values_of_the_cells():
    """The top is bright and flat, the middle dark and striped, the bottom black."""
    grey = torch.zeros(1, 12, 8)
    grey[:, :4] = 0.9
    grey[:, 4:8, ::2] = 0.4
    values = {name: value.view(3, 2) for name, value in cell_values(grey, 3, 2).items()}
    torch.testing.assert_close(values["brightness"][:, 0], torch.tensor([0.9, 0.2, 0.0]))
    torch.testing.assert_close(values["contrast"][:, 1], torch.tensor([0.0, 0.2, 0.0]), rtol=0, atol=1e-3)
    inside = cell_values(torch.zeros(2, 12, 8), 5, 4)["inside"].view(2, 5, 4)
    assert inside[1].tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


def test_every_image_of_the_first_identities_is_chosen(sysu_shards):
    index = ShardIndex.open(sysu_shards)
    chosen = choose(index, "train", 3)
    pids = {modality: set(some.tolist()) for modality, (_, some) in chosen.items()}
    assert pids[Modality.VISIBLE] == pids[Modality.INFRARED]
    assert len(pids[Modality.VISIBLE]) == 3
    for modality, (rows, some) in chosen.items():
        assert set(index.columns["modality"][rows]) == {modality.code}
        assert np.array_equal(index.columns["pid"][rows], some)
        of_them = np.isin(index.columns["pid"], list(pids[modality])) & (index.columns["modality"] == modality.code)
        assert len(rows) == of_them.sum()


def test_a_run_is_measured(sysu_shards, tmp_path, capsys):
    write_model(tmp_path / "run", sysu_shards)
    words = ["--run", str(tmp_path / "run"), "--shards", str(sysu_shards), "--split", "train", "--identities", "4"]
    assert mask_contents.main([*words, "--json", str(tmp_path / "found.json")]) == 0, capsys.readouterr()
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["split"], found["identities"]) == ("train", 4)
    (run,) = found["runs"]
    assert set(run["masks"]) == {"layer 3", "layer 4"}
    for kinds in run["masks"].values():
        assert set(kinds) == {"norm", "deviation"}
        for figures in kinds.values():
            assert set(figures) == {"visible", "infrared", "same", "other"}
            flat = [*figures["visible"].values(), *figures["infrared"].values(), figures["same"], figures["other"]]
            assert all(-1 <= value <= 1 for value in flat)
            assert figures["same"] != figures["other"]
    assert "layer 3  norm       visible " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--identities", "1"], "--identities of at least 2, got 1"),
        (["--split", "nothing"], "split 'nothing': expected at least 2 identities .* got 0; choose another --split"),
    ],
)
def test_wrong_words_are_refused(sysu_shards, tmp_path, capsys, more, says):
    write_model(tmp_path / "run", sysu_shards)
    assert mask_contents.main(["--run", str(tmp_path / "run"), "--shards", str(sysu_shards), *more]) == 2
    assert re.search(says, capsys.readouterr().err)
