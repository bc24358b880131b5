"""The count of a step's operations against the operations of a network one can count by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tacaf.data.index import ShardIndex, select_training
from tacaf.data.plan import Plan
from tacaf.losses.total import TacafLoss
from tacaf.model.tacafnet import TacafNet
from tacaf.train.config import Config, load_config
from tacaf.train.cost import saved_by_one_group
from tacaf.train.flops import BF16_RATES, share_at_one_second, step_flops
from tacaf.train.forward import forward, noise_batch
from tacaf.train.processes import Place
from tests.model.library_cases import KINDS, config_of
from tests.train.tiny_runs import ROOT


def planned(shards, *values: str) -> tuple[Config, Plan]:
    settings = [f"data.shards={shards}", "run=unused", "data.plan={identities_per_batch: 4, images_per_identity: 2}"]
    config = load_config(ROOT / "launch/configs/demo.yaml", [*settings, *values])
    index = ShardIndex.open(config.data.shards)
    return config, Plan(select_training(index, "trainval"), config.data.plan, 0)


def flops_of(shards, *values: str) -> tuple[float, int, int]:
    config, plan = planned(shards, *values)
    return step_flops(config, plan), plan.images, plan.training_set.identities


def test_a_network_counted_by_hand(sysu_shards):
    """Blocks of 3x3 convolutions, one a stage, no IPCAM, no CMAAM, 32 x 32 pixels, last stride 2."""
    backbone = "model.backbone={width: 4, blocks: [1, 1, 1, 1], block: basic, last_stride: 2}"
    found, images, identities = flops_of(
        sysu_shards,
        backbone,
        "model.cmaam.enabled=false",
        "model.ipcam.enabled=false",
        "data.augment={height: 32, width: 32, pad: 2}",
    )
    forward = 2 * 49 * 3 * 4 * 16 * 16  # the stem
    inputs, side = 4, 8
    for stage in range(4):
        outputs = 4 * 2**stage
        side = side if stage == 0 else side // 2
        forward += 2 * side * side * (9 * inputs * outputs + 9 * outputs * outputs)
        forward += 2 * side * side * inputs * outputs if stage else 0  # the projected shortcut
        inputs = outputs
    stem = 2 * 49 * 3 * 4 * 16 * 16
    forward += 2 * 32 * identities  # the classifier
    distances = 2 * 12 * 32  # the triplet's, of each image to the 12 of a pair group
    # Backward twice as much, but the stem needs no gradient of its images. The distances' gradient is one product.
    assert found == pytest.approx(images * (3 * forward - stem + 2 * distances), rel=1e-9)


@pytest.mark.slow
def test_a_sample_of_the_identities_takes_fewer(sysu_shards):
    """The expected number of identities: the 4 of the batch and half of the other 6, instead of 10."""
    plain = ("model.cmaam.enabled=false", "model.ipcam.enabled=false")
    split = "model.classifier.sharding=identities"
    every, images, _ = flops_of(sysu_shards, *plain, split)
    sampled = flops_of(sysu_shards, *plain, split, "model.classifier.negatives=0.5")[0]
    width = 16 * 8 * 4  # of the demo's backbone: bottlenecks
    assert every - sampled == pytest.approx(images * 3 * 2 * width * 3, rel=1e-9)


@pytest.mark.slow
def test_the_attention_modules_add_to_it(sysu_shards):
    plain = flops_of(sysu_shards, "model.cmaam.enabled=false", "model.ipcam.enabled=false")[0]
    without = flops_of(sysu_shards)[0]
    assert without > 1.01 * plain
    assert flops_of(sysu_shards, "model.cmaam.consistency=true")[0] > 1.05 * without  # one more pass of layer 4


TINY = ("model.backbone={width: 4, blocks: [1, 1, 1, 1]}", "data.augment={height: 96, width: 32, pad: 2}")


@pytest.mark.parametrize(
    "values",
    [
        (),
        ("model.cmaam.consistency=true", "model.cmaam.recompute=true", "loss.ic=1", "model.chunk=3"),
        ("model.cmaam.direction=visible_to_infrared", "model.cmaam.layers=[4]", "loss.triplet=wrt"),
        ("model.cmaam.mask=deviation", "loss.dense_unit=margin", "loss.triplet_unit=distance"),
        ("model.cmaam.self_similarity=0.5", "loss.dense_unit=distance", "loss.triplet=adp"),
        ("model.ipcam.ring=false", "model.ipcam.classifiers=shared", "loss.label_smoothing=0.1"),
        ("model.ipcam.pair_stage=false", "model.bn=local", "train.channels_last=true", "train.compile=true"),
    ],
    ids=lambda values: values[0] if values else "default",
)
@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_both_counts_read_no_value_with_any_kernels(sysu_shards, kernels, values):
    """A tensor that is counted has a shape alone, and reading a value of it raises an error."""
    config, plan = planned(sysu_shards, *TINY, f"model.kernels={kernels}", "train.precision=bf16", *values)
    assert step_flops(config, plan) > 0
    assert saved_by_one_group(config, plan.training_set.identities) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_both_counts_agree_with_a_real_pass_of_a_network_of_transformers(sysu_shards, name):
    """These networks read values and copy modules while they are built, which shapes alone do not allow."""
    config, plan = planned(sysu_shards, f"data.augment={{height: {KINDS[name][1]}, width: 64, pad: 2}}")
    identities = plan.training_set.identities
    config = config.model_copy(update={"model": config_of(name, kernels="reference")})
    model, batch = TacafNet(config.model, identities), noise_batch(config, 1)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = {}

    def count(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            total = TacafLoss(config.loss)(forward(model, batch, config), batch.label_B)[0]
        total.backward()
    groups = plan.images / len(batch.label_B)
    assert step_flops(config, plan) == pytest.approx(groups * counter.get_total_flops(), rel=1e-9)
    expected = sum(storage.nbytes() for place, storage in saved.items() if place not in own)
    assert saved_by_one_group(config, identities) == pytest.approx(expected, rel=0.02)


def test_the_share_of_a_gpus_rate_with_the_definitions(sysu_shards, monkeypatch):
    """A training on a GPU whose rate is known counts its operations at the start, whatever its kernels."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    config, plan = planned(sysu_shards, *TINY, "model.kernels=reference", "train.precision=bf16")
    place = Place(0, 2, torch.device("cuda", 0))
    assert share_at_one_second(config, plan, place) == step_flops(config, plan) / (2 * BF16_RATES["H200"])
