"""The gradients along a training: every checkpoint, weights counted, and terms that the run was trained without."""

import json

import pytest
import torch
from safetensors.torch import load_file

from perf.checks import gradient_shares
from tacaf import checkpoint
from tacaf.data.index import ShardIndex
from tests.train.finished import write_model

pytestmark = pytest.mark.slow  # backward passes of a whole model


def save(run, step, state):
    """A checkpoint as a training commits it, with the one file that is read here."""
    folder = run / "checkpoints"
    temporary = folder / checkpoint.temporary_tag(step)
    temporary.mkdir(parents=True)
    torch.save({"module": state}, temporary / gradient_shares.MODEL_FILE)
    checkpoint.commit(folder, step, {}, keep=9)


@pytest.fixture
def run(sysu_shards, tmp_path):
    """A run without CMAAM and two checkpoints; in the second one the classifier is thirty times as large."""
    folder = tmp_path / "run"
    identities = len(ShardIndex.open(sysu_shards).pids_of("trainval"))
    write_model(folder, sysu_shards, identities, "model.ipcam.enabled=false", "model.cmaam.enabled=false")
    state = load_file(folder / "model.safetensors")
    save(folder, 0, state)
    save(folder, 40, {**state, "head.classifier.0.weight": 30 * state["head.classifier.0.weight"]})
    return folder


def measured(run, shards, tmp_path, *more):
    path = tmp_path / "found.json"
    words = ["--run", str(run), "--shards", str(shards), "--batches", "1", "--json", str(path), *more]
    assert gradient_shares.main(words) == 0
    [one] = json.loads(path.read_text())["runs"]
    return one["along"]


def test_every_checkpoint_is_measured_and_the_identity_loss_is_the_unit(run, sysu_shards, tmp_path, capsys):
    first, second = measured(run, sysu_shards, tmp_path)
    assert (first["step"], second["step"]) == (0, 40)
    assert set(first["terms"]) == {"identity", "triplet"}
    assert first["terms"]["identity"]["share"] == pytest.approx(1)
    assert second["terms"]["identity"]["norm"] > 2 * first["terms"]["identity"]["norm"]
    triplet = second["terms"]["triplet"]
    assert triplet["norm"] == pytest.approx(first["terms"]["triplet"]["norm"], rel=1e-4)
    assert triplet["share"] == pytest.approx(triplet["norm"] / second["terms"]["identity"]["norm"])
    assert "triplet" in capsys.readouterr().out


def test_terms_without_parameters_can_be_added_with_their_weight(run, sysu_shards, tmp_path):
    cmaam = ("--set", "model.cmaam.enabled=true", "--set")
    light, _ = measured(run, sysu_shards, tmp_path, *cmaam, "loss.dt=0.5")
    heavy, _ = measured(run, sysu_shards, tmp_path, *cmaam, "loss.dt=2")
    assert light["terms"]["dense_triplet"]["norm"] > 0
    assert heavy["terms"]["dense_triplet"]["norm"] == pytest.approx(4 * light["terms"]["dense_triplet"]["norm"])
    assert heavy["terms"]["triplet"] == light["terms"]["triplet"]


def test_another_model_no_checkpoints_and_a_strangers_one_are_refused(run, sysu_shards, tmp_path, capsys):
    words = ["--run", str(run), "--shards", str(sysu_shards)]

    def refused(*more):
        assert gradient_shares.main([*words, *more]) == 2
        return capsys.readouterr().err

    assert "ipcam" in refused("--set", "model.ipcam.enabled=true")
    assert "head.classifier" in refused("--set", "data.split=train")  # of fewer identities
    assert "stage 0, 1 or 2" in refused("--set", "deepspeed={zero_optimization: {stage: 3}}")
    assert "--batches, got 0" in refused("--batches", "0")
    manifest = run / "checkpoints" / "step-00000000" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"signature"', '"signed"'))
    assert str(manifest) in refused()
    (run / "checkpoints").rename(run / "elsewhere")
    assert f"{run} has no checkpoints" in refused()
