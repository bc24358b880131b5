"""What a training step asks of a GPU: how convolutions are chosen, and that the host never waits for it."""

import functools
from pathlib import Path

import pytest
import torch

from launch.config import Config, load_config
from launch.engine import choose_convolutions
from launch.forward import draw, pairs_of
from tacaf.data.index import ShardIndex, select_training
from tacaf.data.pipeline import TrainingPipeline
from tacaf.data.plan import Plan
from tests.fake_gpu import DEVICE, Operators, without_pinning
from tests.launch.test_training import TINY
from tests.model import cases as model_cases
from tests.model.cases import tiny_batch


@pytest.mark.parametrize("deterministic", [False, True])
def test_convolutions_are_the_fastest_or_reproducible(deterministic):
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False):
        choose_convolutions(deterministic)
        assert torch.backends.cudnn.deterministic is deterministic
        assert torch.backends.cudnn.benchmark is not deterministic


def test_the_pairs_come_with_the_batch_and_are_those_of_its_rows(sysu_shards):
    config = tiny_config(sysu_shards)
    plan = Plan(select_training(ShardIndex.open(config.data.shards), config.data.split), config.data.plan, config.seed)
    batches = TrainingPipeline(
        ShardIndex.open(config.data.shards), plan, config.data.augment, start=(1, 2), steps_per_epoch=3,
        draw_pairs=functools.partial(draw, config),
    )  # fmt: skip
    for _ in range(2):
        batch = next(batches)
        without = batch._replace(pairs3=None, pairs4=None)
        assert pairs_of(batch, config) == {"pairs3": batch.pairs3, "pairs4": batch.pairs4}
        for name, expected in pairs_of(without, config).items():
            assert all(map(torch.equal, pairs_of(batch, config)[name], expected)), name


def test_a_batch_moves_without_a_wait_and_keeps_on_the_host_what_only_logs_read(monkeypatch):
    without_pinning(monkeypatch)
    batch = tiny_batch()
    batch = batch._replace(pairs3=model_cases.pairs_of(batch, 3), pairs4=model_cases.pairs_of(batch, 4))
    with Operators() as operators:
        moved = batch.to(DEVICE)
    assert operators.waiting == []
    assert sum("_to_copy" in name for name in operators.computing) == 2, "the images, and everything else"
    for column in (moved.images_BCHW, moved.label_B, *moved.pairs3, *moved.pairs4):
        assert column.device == DEVICE
    assert all(len(column) == len(batch.label_B) for column in (moved.label_B, *moved.pairs3))
    assert moved.row_B is batch.row_B
    here = batch.to(torch.device("cpu"))
    assert torch.equal(here.label_B, batch.label_B)
    for name in ("pairs3", "pairs4"):
        assert all(map(torch.equal, getattr(here, name), getattr(batch, name)))


def tiny_config(shards: Path) -> Config:
    settings = [f"data.shards={shards}", "run=unused", *TINY]
    return load_config(Path(__file__).parent.parent.parent / "launch" / "configs" / "demo.yaml", settings)
