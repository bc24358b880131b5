"""Classifiers in pieces train as in one piece: under DeepSpeed, on two ranks, with and without ZeRO-3."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.launch.test_training import STEPS, steps_of, train

SHORT = (
    "train.epochs=1",
    "evaluation.shots=[1]",
    "evaluation.modes=[all_search]",
    "loss.label_smoothing=0.1",
    # Steps in proportion to the gradient: AdamW would blow up the last bits of small ones.
    *("optim.kind=sgd", "optim.new_rate=0.1", "optim.backbone_rate=0.01"),
)
PIECES = ("model.chunk=5", "model.ipcam.classifiers=shared")  # 12 identities: 5, 5 and 2


def weights_of(folder):
    """The tensors of the model file, pieces put together."""
    state, whole = load_file(folder / "model.safetensors"), {}
    for name, tensor in sorted(state.items()):
        whole.setdefault(name.partition("classifier.")[0] if "classifier" in name else name, []).append(tensor)
    return {name: np.concatenate([np.atleast_1d(part) for part in parts]) for name, parts in whole.items()}


@pytest.fixture(scope="module")
def one_piece(sysu_shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "one"
    train(sysu_shards, folder, *SHORT, "model.ipcam.classifiers=shared")
    return folder


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 0), (2, 3)], ids=["one rank", "two ranks", "ZeRO-3"])
def test_pieces_train_as_one(sysu_shards, one_piece, tmp_path, ranks, stage):
    folder = tmp_path / "pieces"
    zero = (f"deepspeed={{zero_optimization: {{stage: {stage}}}}}",)
    train(sysu_shards, folder, *SHORT, *PIECES, *zero, ranks=ranks)
    one, pieces = steps_of(one_piece), steps_of(folder)
    assert len(pieces) == STEPS
    for a, b in zip(one, pieces, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5), "the mean over ranks"
    expected, found = weights_of(one_piece), weights_of(folder)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        assert np.abs(found[name] - tensor).max() <= 1e-4 * np.abs(tensor).max(), name
