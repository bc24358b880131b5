"""Classifiers in pieces train as in one piece: under DeepSpeed, on two ranks, with and without ZeRO-3."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tacaf.train.config import load_config
from tacaf.train.new_model import build_model
from tests.tolerances import State, assert_same_losses, assert_same_training
from tests.train.tiny_runs import STEPS, steps_of, tensors_of, train

SHORT = (
    "train.epochs=1",
    "evaluation.shots=[1]",
    "evaluation.modes=[all_search]",
    "loss.label_smoothing=0.1",
    # Steps in proportion to the gradient: AdamW would blow up the last bits of small ones, and clipping would hide a
    # gradient of the wrong scale. The gradient's norm is about 75.
    *("optim.kind=sgd", "optim.clip_norm=0", "optim.new_rate=1e-3", "optim.backbone_rate=1e-4"),
)
PIECES = ("model.chunk=5", "model.ipcam.classifiers=shared")  # 12 identities, of which 10 train: 5 and 5


def put_together(state: Mapping[str, torch.Tensor]) -> State:
    """The state with every classifier in one piece."""
    whole: dict[str, list[torch.Tensor]] = {}
    for name, tensor in sorted(state.items()):
        whole.setdefault(name.partition("classifier.")[0] if "classifier" in name else name, []).append(tensor)
    return {name: torch.cat(pieces) if len(pieces) > 1 else pieces[0] for name, pieces in whole.items()}


def weights_of(folder: Path) -> State:
    return put_together(tensors_of(folder))


@pytest.fixture(scope="module")
def one_piece(sysu_shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    train(sysu_shards, folder, *SHORT, "model.ipcam.classifiers=shared")
    return folder


@pytest.fixture(scope="module")
def start(one_piece) -> State:
    """The parameters before the first step."""
    identities = len(weights_of(one_piece)["head."])
    model, _ = build_model(load_config(one_piece / "config.yaml", []), identities)
    return put_together({name: parameter.detach() for name, parameter in model.named_parameters()})


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 0), (2, 3)], ids=["one rank", "two ranks", "ZeRO-3"])
def test_pieces_train_as_one(sysu_shards, one_piece, start, tmp_path, ranks, stage):
    folder = tmp_path / "pieces"
    zero = (f"deepspeed={{zero_optimization: {{stage: {stage}}}}}",)
    train(sysu_shards, folder, *SHORT, *PIECES, *zero, ranks=ranks)
    assert len(steps_of(folder)) == STEPS
    assert_same_losses(steps_of(one_piece), steps_of(folder))
    assert_same_training(start, weights_of(one_piece), weights_of(folder))
