"""Erasing and the channel matrix on tensors against the reference, for every kind of matrix and either space."""

import numpy as np
import pytest
import torch

from tacaf.data.augment import AugmentConfig, draw_parameters, normalise, pad_crop, reference
from tacaf.data.pixels import finish

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
