"""GeM of maps and stripes against scalar loops, and the two layouts of a map."""

import pytest
import torch

from tacaf.model.pooling import gem, map_BCHW, rows_BHWC


def _scalar_gem(features_BCHW, levels):
    """max(f, 1e-6) cubed, mean over the stripe, cube root; coarse to fine, top to bottom."""
    pooled = []
    for image in features_BCHW.tolist():
        height = len(image[0])
        nodes = []
        for level in levels:
            rows = height // level
            for stripe in range(level):
                values = [[v for row in channel[stripe * rows : (stripe + 1) * rows] for v in row] for channel in image]
                nodes.append([(sum(max(v, 1e-6) ** 3 for v in c) / len(c)) ** (1 / 3) for c in values])
        pooled.append(nodes)
    return torch.tensor(pooled, dtype=torch.float64)


@pytest.mark.parametrize("levels", [(1,), (1, 3, 6), (1, 2, 6)])
def test_gem_against_scalar_loops(levels):
    torch.manual_seed(0)
    features = torch.randn(3, 4, 6, 2).relu().double()
    features[0, 0] = 0  # a dead channel pools to the clamp, not to 0 or NaN
    found = gem(features.float(), levels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), _scalar_gem(features, levels), rtol=1e-5, atol=1e-9)


def test_gem_of_one_stripe_is_the_whole_map_whatever_the_layout():
    features = torch.rand(2, 4, 6, 2)
    torch.testing.assert_close(gem(features), gem(features, (1, 3))[:, :1])
    assert torch.equal(gem(features), gem(features.contiguous(memory_format=torch.channels_last)))


def test_gem_is_float32_inside_autocast():
    features = torch.rand(2, 4, 6, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = gem(features)
    assert torch.equal(found, gem(features))


def test_a_map_survives_the_way_to_rows_and_back():
    features = torch.randn(2, 3, 4, 5)
    rows = rows_BHWC(features).flatten(1, 2)
    assert torch.equal(rows[1, 2 * 5 + 3], features[1, :, 2, 3])
    assert torch.equal(map_BCHW(rows, 4, 5), features)
    assert map_BCHW(rows, 4, 5).is_contiguous(memory_format=torch.channels_last)
