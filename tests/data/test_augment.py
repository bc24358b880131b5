"""The drawn parameters keep to their ranges and frequencies; the references against hand-made cases."""

import numpy as np
import pytest

from tacaf.data.augment import (
    ERASE_FILL,
    GRAY,
    AugmentConfig,
    Parameters,
    draw_parameters,
    normalise,
    pad_crop,
    resize,
)
from tacaf.vocabulary import Branch

CONFIG = AugmentConfig(height=40, width=20, pad=4)
COUNT = 6000
POSITION = np.arange(COUNT)


@pytest.fixture(scope="module")
def drawn() -> Parameters:
    return draw_parameters(CONFIG, 1, 0, 0, POSITION, POSITION % 3)


def near(share: float, expected: float) -> bool:
    """Within five binomial standard deviations for a third of the draws."""
    return abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / (COUNT / 3))


def test_crop_covers_its_range(drawn):
    assert drawn.crop_B2.min() == -4
    assert drawn.crop_B2.max() == 4
    assert len(np.unique(drawn.crop_B2[:, 0])) == 9


def test_flip_is_fair(drawn):
    assert near(drawn.mirror_B.mean(), 0.5)


def test_erased_boxes(drawn):
    shape, anchor = drawn.erase_shape_B2, drawn.erase_anchor_B2
    erased = shape[:, 0] > 0
    assert near(erased.mean(), 0.5)
    assert (shape < (40, 20)).all()
    assert (anchor >= 0).all()
    assert (anchor + shape <= (40, 20)).all()
    assert (anchor[erased] + shape[erased] == (40, 20)).any(axis=0).all(), "the far corner is reached"
    share = shape[erased].prod(axis=1) / 800
    assert 0.01 < share.min() < 0.03
    assert 0.35 < share.max() < 0.45
    aspect = shape[erased, 0] / shape[erased, 1]
    assert aspect.min() < 0.5
    assert aspect.max() > 2.5


def test_channel_matrices(drawn):
    branch = POSITION % 3
    assert (drawn.channel_BCC[branch == Branch.VISIBLE] == np.eye(3)).all()
    exchanged = drawn.channel_BCC[branch == Branch.AUGMENTED]
    for channel in range(3):
        copy = np.zeros((3, 3))
        copy[:, channel] = 1
        assert near((exchanged == copy).all(axis=(1, 2)).mean(), 1 / 3)
        infrared = drawn.channel_BCC[branch == Branch.INFRARED]
        assert near((infrared == copy).all(axis=(1, 2)).mean(), 1 / 4)
    assert near((infrared == np.tile(GRAY, (3, 1))).all(axis=(1, 2)).mean(), 1 / 8)
    assert near((infrared == np.eye(3)).all(axis=(1, 2)).mean(), 1 / 8)


def test_a_row_does_not_depend_on_the_rows_beside_it(drawn):
    alone = draw_parameters(CONFIG, 1, 0, 0, POSITION[77:78], POSITION[77:78] % 3)
    for whole, one in zip(drawn, alone, strict=True):
        assert (whole[77] == one[0]).all()


def test_resize_of_a_ramp_is_a_ramp():
    ramp = np.tile(np.arange(0, 200, 10, dtype=np.uint8)[None, :, None], (6, 1, 3))
    doubled = resize(ramp, 6, 40)
    assert doubled[0, :4, 0].tolist() == [0, 2, 8, 12]  # 2.5 and 7.5 to even, as numpy rounds
    assert (resize(ramp, 6, 20) == ramp).all()


def test_pad_crop():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    moved = pad_crop(image, 2, (-1, 1))
    assert moved[:, :, 0].tolist() == [[0, 0, 0, 0], [1, 2, 3, 0], [5, 6, 7, 0]]


def test_normalise_and_fill():
    assert np.allclose(
        normalise(np.full((1, 1, 3), 255.0))[0, 0], [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    )
    assert np.allclose(ERASE_FILL, [0.4914, 0.4822, 0.4465])
