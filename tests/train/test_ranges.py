"""Classifiers split by identities in training: their checkpoints cut anew, and the same training on one and two ranks."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from launch.train import open_data
from tacaf.model.ranges import IdentityRange, RangeClassifier
from tacaf.train.config import load_config
from tacaf.train.ranges import Ranges, check_ranges
from tacaf.vocabulary import InputError
from tests.model.rank_threads import on_ranks
from tests.tolerances import assert_same_losses, assert_same_training
from tests.train.engine_cases import DEMO
from tests.train.test_identities import SHORT
from tests.train.test_training import STEPS, run, steps_of, tensors_of, train

SPLIT = "model.classifier.sharding=identities"
IDENTITIES = 11
NAMES = {"head": (5,), "nodes": (3, 4)}


def config_of(*values: str) -> Any:
    return load_config(DEMO, ["run=unused", "data.shards=unused", SPLIT, *values])


def ranges_of(rank: int, ranks: int, kind: str, fill: float | None, identities: int = IDENTITIES) -> Ranges:
    """Two classifiers of a rank after an update; every number tells its place in the whole, or is `fill`."""
    own = IdentityRange.of_rank(identities, rank, ranks)

    def values(shape: tuple[int, ...], plus: float) -> torch.Tensor:
        whole = torch.arange(float(identities * torch.Size(shape).numel())).unflatten(0, (*shape[:-1], -1, shape[-1]))
        part = whole[..., own.start : own.stop, :].clone() + plus
        return part if fill is None else torch.full_like(part, fill)

    model = torch.nn.ModuleDict(
        {name: RangeClassifier(values(shape, 0.0), own, 4) for name, shape in NAMES.items()}
    )
    found = Ranges.of_model(config_of(f"optim.kind={kind}"), model, 32)
    assert found is not None
    if fill is None:
        for name, shape in NAMES.items():
            weight = found.classifiers[name].weight
            keys = ("momentum_buffer",) if kind == "sgd" else ("exp_avg", "exp_avg_sq")
            found.optimizer.state[weight].update({key: values(shape, 0.25 * at) for at, key in enumerate(keys, 1)})
            if kind == "adamw":
                found.optimizer.state[weight]["step"] = torch.tensor(7.0)
    return found


def content_of(ranges: Ranges) -> dict[str, torch.Tensor]:
    return {
        f"{name} {key}": value.detach()
        for name, classifier in ranges.classifiers.items()
        for key, value in {"weight": classifier.weight, **ranges.optimizer.state[classifier.weight]}.items()
    }


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (4, 3), (3, 3)])
def test_a_checkpoint_is_cut_anew_bit_for_bit(monkeypatch, tmp_path, before, after, kind):
    on_ranks(monkeypatch, before, lambda rank: ranges_of(rank, before, kind, None).save(tmp_path))
    assert len(list(tmp_path.iterdir())) == before

    def loaded(rank: int) -> dict[str, torch.Tensor]:
        ranges = ranges_of(rank, after, kind, fill=-1.0)
        ranges.load(tmp_path, before)
        return content_of(ranges)

    for rank, content in enumerate(on_ranks(monkeypatch, after, loaded)):
        expected = content_of(ranges_of(rank, after, kind, None))
        assert content.keys() == expected.keys()
        assert all(value.equal(content[name]) for name, value in expected.items())


def test_before_the_first_update_there_are_weights_alone(tmp_path):
    ranges = ranges_of(0, 1, "sgd", fill=3.0)
    ranges.save(tmp_path)
    (file,) = tmp_path.iterdir()
    assert set(load_file(file)) == {"head/weight", "nodes/weight"}
    other = ranges_of(0, 1, "sgd", None)
    other.load(tmp_path, 1)
    assert other.classifiers["head"].weight.eq(3.0).all()
    assert not any(other.optimizer.state.values()), "momentum of another training is gone"


def test_what_does_not_cover_the_identities_is_refused(monkeypatch, tmp_path):
    on_ranks(monkeypatch, 2, lambda rank: ranges_of(rank, 2, "sgd", None).save(tmp_path))
    first, second = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match="of 12.*of 11"):
        ranges_of(0, 1, "sgd", None, identities=12).load(tmp_path, 2)
    shutil.copy(first, second)
    with pytest.raises(InputError, match=re.escape(second.name)):
        ranges_of(0, 1, "sgd", None).load(tmp_path, 2)
    second.unlink()
    with pytest.raises(InputError, match=re.escape(second.name)):
        ranges_of(0, 1, "sgd", None).load(tmp_path, 2)


def test_the_norm_counts_every_range_once(monkeypatch):
    def job(rank: int) -> float:
        ranges = ranges_of(rank, 4, "sgd", fill=1.0)
        for classifier in ranges.classifiers.values():
            classifier.weight.grad = torch.full_like(classifier.weight, 2.0)
        return float(ranges.square_norm())

    numbers = IDENTITIES * (5 + 3 * 4)
    assert on_ranks(monkeypatch, 4, job) == pytest.approx([4.0 * numbers] * 4)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("deepspeed.zero_optimization.stage=3", "stage 1"),
        ("deepspeed.zero_optimization={stage: 2, offload_optimizer: {device: cpu}}", "offload_optimizer.device none"),
        ("optim.fused=false", "optim.fused true"),
        ("train.compile=true", "train.compile false"),
    ],
)
def test_what_cannot_be_split_is_refused(value, named):
    for stage in (0, 1, 2):
        config_of(f"deepspeed.zero_optimization.stage={stage}")
    with pytest.raises(InputError, match=rf"model.classifier.sharding: .*{named}"):
        config_of(value)


def test_fewer_identities_than_ranks_are_refused():
    check_ranges(config_of(), 4, 4)
    with pytest.raises(InputError, match="at least 4 .* got 3"):
        check_ranges(config_of(), 3, 4)
    check_ranges(load_config(DEMO, ["run=unused", "data.shards=unused"]), 3, 4)
