"""Erasing and the channel matrix on tensors against the reference, for every kind of matrix and either space."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tacaf.data.augment import AugmentConfig, Parameters, draw_parameters, normalise, pad_crop, reference
from tacaf.data.pixels import finish, finish_whole
from tacaf.data.training_pipeline import TrainingPipeline
from tests.fake_gpu import DEVICE, Operators, without_pinning

COUNT = 60


@pytest.mark.parametrize("space", ["normalized", "raw"])
def test_the_last_operations_are_the_reference(space):
    config = AugmentConfig(height=40, width=20, pad=4, channel_augment_space=space)
    drawn = draw_parameters(config, 1, 0, 0, np.arange(COUNT), np.arange(COUNT) % 3)
    image = np.random.default_rng(0).integers(0, 256, (40, 20, 3), dtype=np.uint8)
    before = []
    for place in range(COUNT):
        cropped = pad_crop(image, 4, tuple(drawn.crop_B2[place]))
        before.append(normalise(cropped[:, ::-1] if drawn.mirror_B[place] else cropped).transpose(2, 0, 1))
    images_BCHW = torch.from_numpy(np.stack(before).astype(np.float32))
    out_BCHW = torch.full_like(images_BCHW, np.nan)
    finish(images_BCHW, drawn, space, out_BCHW)
    for place in range(COUNT):
        assert np.abs(out_BCHW[place].numpy() - reference(image, config, drawn, place)).max() < 1e-5, place
    kinds = {tuple(matrix.ravel().tolist()) for matrix in drawn.channel_BCC}
    assert len(kinds) == 5, "unchanged, three channels, gray"
    assert drawn.erase_shape_B2.any()


def test_chosen_channels_are_copied_bit_by_bit():
    config = AugmentConfig(height=32, width=16, erase=0.0)
    drawn = draw_parameters(config, 0, 0, 0, np.arange(COUNT), np.ones(COUNT, dtype=np.int64))
    images_BCHW = torch.randn(COUNT, 3, 32, 16)
    out_BCHW = torch.empty_like(images_BCHW)
    finish(images_BCHW.clone(), drawn, "normalized", out_BCHW)
    for place, matrix in enumerate(drawn.channel_BCC):
        chosen = int(np.flatnonzero(matrix[0])[0])
        assert torch.equal(out_BCHW[place], images_BCHW[place, [chosen] * 3])


def drawn_and_images(space: str) -> tuple[Parameters, torch.Tensor]:
    config = AugmentConfig(height=40, width=20, channel_augment_space=space)
    drawn = draw_parameters(config, 1, 0, 0, np.arange(COUNT), np.arange(COUNT) % 3)
    return drawn, torch.randn(COUNT, 3, 40, 20, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("space", ["normalized", "raw"])
def test_a_whole_batch_at_once_is_the_same(space):
    drawn, images_BCHW = drawn_and_images(space)
    expected_BCHW = torch.empty_like(images_BCHW)
    finish(images_BCHW.clone(), drawn, space, expected_BCHW)
    found_BCHW = finish_whole(images_BCHW, drawn, space)
    assert found_BCHW.dtype == torch.float32
    assert torch.allclose(found_BCHW, expected_BCHW, rtol=1e-6, atol=1e-6)
    chooses = [matrix for matrix in drawn.channel_BCC if set(matrix.ravel().tolist()) == {0.0, 1.0}]
    assert COUNT / 2 < len(chooses) < COUNT, "some choose channels, some mix them"
    for place, matrix in enumerate(drawn.channel_BCC):
        unchanged = np.array_equal(matrix, np.eye(3))
        if unchanged or (space == "normalized" and set(matrix.ravel().tolist()) == {0.0, 1.0}):
            assert torch.equal(found_BCHW[place], expected_BCHW[place]), place


@pytest.mark.parametrize("space", ["normalized", "raw"])
def test_a_gpu_has_a_handful_of_operators_to_run(space, monkeypatch):
    """Six kernels and two copies; for none of them the host waits."""
    without_pinning(monkeypatch)
    drawn, _ = drawn_and_images(space)
    pipeline = SimpleNamespace(augment=AugmentConfig(channel_augment_space=space))
    branches = [torch.empty(COUNT // 3, 3, 40, 20, device=DEVICE) for _ in range(3)]
    with Operators() as operators:
        found_BCHW = TrainingPipeline._finished(pipeline, branches, drawn)
    assert found_BCHW.device == DEVICE
    assert found_BCHW.shape == (COUNT, 3, 40, 20)
    on_gpu = [name for name in operators.computing if "_to_copy" not in name and "empty" not in name]
    assert len(on_gpu) <= 6, on_gpu
    assert sum("_to_copy" in name for name in operators.computing) == 2
    assert not operators.waiting
