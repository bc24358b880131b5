"""Classifiers split by identities in training: checkpoints cut anew, and the same training on one and two ranks."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tacaf.model.ranges import IdentityRange, RangeClassifier
from tacaf.train.config import load_config
from tacaf.train.new_model import build_model
from tacaf.train.ranges import Ranges, check_ranges
from tacaf.vocabulary import InputError
from tests.model.rank_threads import on_ranks
from tests.tolerances import assert_same_losses, assert_same_training
from tests.train.engine_cases import DEMO
from tests.train.test_identities import SHORT
from tests.train.tiny_runs import STEPS, steps_of, tensors_of, train

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

    model = torch.nn.ModuleDict({name: RangeClassifier(values(shape, 0.0), own, 4) for name, shape in NAMES.items()})
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
    with pytest.raises(InputError, match=r"of 12.*of 11"):
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
    with pytest.raises(InputError, match=r"at least 4 .* got 3"):
        check_ranges(config_of(), 3, 4)
    check_ranges(load_config(DEMO, ["run=unused", "data.shards=unused"]), 3, 4)


# Clipped, so that the norm's parts must be whole. Its value is about 75 (test_identities).
TRAINING = (*(value for value in SHORT if "clip_norm" not in value), "optim.clip_norm=20", SPLIT)
HALFWAY = "step-00000002"


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """The model file's tensors, and the classifiers put together from the last checkpoint's ranges."""
    last = folder / "checkpoints" / f"step-{STEPS:08d}"
    parts = [load_file(path) for path in sorted(last.glob("classifiers-*.safetensors"))]
    whole = {name: torch.cat([part[name] for part in parts], -2) for name in parts[0]}
    return {**tensors_of(folder), **whole}


def continued(shards: Path, folder: Path, place: Path, ranks: int) -> Path:
    """A run in another folder that resumes in the middle of the epoch where the one in `folder` was."""
    shutil.copytree(folder, place)
    shutil.rmtree(place / "checkpoints" / f"step-{STEPS:08d}")
    (place / "checkpoints" / "latest").write_text(f"{HALFWAY}\n")
    (place / "model.safetensors").unlink()
    train(shards, place, *TRAINING, "--resume", "--trust", ranks=ranks)
    return place


def same_training(one: Path, other: Path) -> None:
    assert_same_losses(steps_of(one), steps_of(other)[-STEPS:])
    start = initial_state(one)
    found, expected = weights_of(other), weights_of(one)
    assert {name for name in expected if name.endswith("/weight")} <= start.keys()
    assert_same_training(start, expected, found)


def initial_state(folder: Path) -> dict[str, torch.Tensor]:
    """The parameters before the first step. Momentum begins at nothing."""
    identities = weights_of(folder)["head.classifier/weight"].shape[0]
    model, _ = build_model(load_config(folder / "config.yaml", []), identities)
    classifiers = {
        f"{name}/weight": module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, RangeClassifier)
    }
    momentum = {name.replace("weight", "momentum_buffer"): torch.zeros_like(one) for name, one in classifiers.items()}
    return {**{name: one.detach() for name, one in model.named_parameters()}, **classifiers, **momentum}


@pytest.fixture(scope="module")
def one_rank(sysu_shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    train(sysu_shards, folder, *TRAINING)
    assert not [name for name in tensors_of(folder) if "classifier" in name]
    return folder


@pytest.fixture(scope="module")
def two_ranks(sysu_shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "two"
    train(sysu_shards, folder, *TRAINING, ranks=2)
    return folder


@pytest.mark.slow
def test_two_ranks_train_as_one(one_rank, two_ranks):
    same_training(one_rank, two_ranks)


@pytest.mark.slow
def test_one_rank_goes_on_where_two_stopped(sysu_shards, one_rank, two_ranks, tmp_path):
    same_training(one_rank, continued(sysu_shards, two_ranks, tmp_path / "run", ranks=1))


@pytest.mark.long
def test_two_ranks_go_on_where_one_stopped(sysu_shards, one_rank, tmp_path):
    same_training(one_rank, continued(sysu_shards, one_rank, tmp_path / "run", ranks=2))


@pytest.mark.long
def test_two_ranks_resume_bit_for_bit(sysu_shards, two_ranks, tmp_path):
    found = weights_of(continued(sysu_shards, two_ranks, tmp_path / "run", ranks=2))
    assert all(value.equal(found[name]) for name, value in weights_of(two_ranks).items())


@pytest.mark.long
def test_gradients_cut_by_zero_2_train_as_one(sysu_shards, one_rank, tmp_path):
    train(sysu_shards, tmp_path / "run", *TRAINING, "deepspeed.zero_optimization.stage=2", ranks=2)
    same_training(one_rank, tmp_path / "run")
