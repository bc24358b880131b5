"""The gradients of the terms: they add up to the whole, and come from a finished run's own batches."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from perf.checks import loss_gradients
from tacaf.data.index import ShardIndex
from tacaf.losses.total import TacafLoss
from tacaf.tensors import save_sealed
from tacaf.train.config import load_config
from tacaf.train.forward import forward, noise_batch
from tacaf.train.new_model import build_model
from tests.train.finished import DEMO, TINY, write_model

pytestmark = pytest.mark.slow  # backward passes of a whole model


def test_the_terms_gradients_add_up_to_the_loss():
    config = load_config(
        DEMO, ["run=none", "data.shards=none", *TINY, "model.cmaam.consistency=true", "loss.ic=0.3", "loss.dt=2"]
    )
    model, _ = build_model(config, 16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = noise_batch(config, 4)
    found = loss_gradients.term_gradients(model, batch, config)
    assert set(found) == {"identity", "triplet", "consistency", "dense_triplet", "part", "pair"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.train()
    loss, _ = TacafLoss(config.loss)(forward(model, batch, config), batch.label_B)
    loss.backward()
    whole = torch.cat([weight.grad.flatten() for weight in model.backbone_parameters()])
    weights = {"consistency": 0.3, "dense_triplet": 2.0}
    together = torch.stack([weights.get(name, 1.0) * gradient for name, gradient in found.items()]).sum(0)
    torch.testing.assert_close(together, whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))
    figures = loss_gradients.measure(model, [batch], config)
    assert figures["identity"]["cosine_with_identity"] == pytest.approx(1, abs=1e-5)
    assert figures["dense_triplet"]["norm"] == pytest.approx(float(found["dense_triplet"].norm()), rel=1e-3)


def test_a_run_is_measured_before_and_after(sysu_shards, tmp_path, capsys):
    run = tmp_path / "run"
    config = write_model(run, sysu_shards, len(ShardIndex.open(sysu_shards).pids_of("trainval")))
    words = ["--run", str(run), "--shards", str(sysu_shards), "--batches", "2", "--json", str(tmp_path / "found.json")]

    def measured() -> dict:
        assert loss_gradients.main(words) == 0, capsys.readouterr()
        return json.loads((tmp_path / "found.json").read_text())["runs"][0]

    same = measured()  # a training that changed nothing
    norms = {time: {name: figures["norm"] for name, figures in same[time].items()} for time in ("before", "after")}
    assert norms["after"] == pytest.approx(norms["before"])
    assert same["weights"]["ic"] == config.loss.ic
    assert "dense_triplet" in capsys.readouterr().out
    state = load_file(run / "model.safetensors")
    with safe_open(run / "model.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["tacaf"])
    state["head.classifier.0.weight"] *= 30
    save_sealed(run / "model.safetensors", state, facts)
    other = measured()
    assert other["before"] == same["before"]
    assert other["after"]["identity"]["norm"] > 2 * other["before"]["identity"]["norm"]
    assert other["after"]["triplet"]["norm"] == pytest.approx(norms["after"]["triplet"])


def test_an_unfinished_run_is_refused(sysu_shards, tmp_path, capsys):
    assert loss_gradients.main(["--run", str(tmp_path), "--shards", str(sysu_shards)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
