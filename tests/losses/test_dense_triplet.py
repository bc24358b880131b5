"""The dense triplet against scalar loops: every anchor's hinge under its own co-mask."""

import pytest
import torch

from tacaf.interfaces import Alignment
from tacaf.losses.dense_triplet import dense_triplet_loss


def alignment(dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    return Alignment(*(torch.rand(3, 5, generator=draw).to(dtype) for _ in range(3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("margin", [0.0, 0.3, 2.0])
def test_dense_triplet_against_scalar_loops(margin, dtype):
    case, terms = alignment(dtype), []
    for near_L, far_L, comask_L in zip(*(x.tolist() for x in case), strict=True):
        for near, far, comask in zip(near_L, far_L, comask_L, strict=True):
            terms.append(comask * max(0.0, near - far + margin))
    loss = dense_triplet_loss(case, margin)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(sum(terms) / 15, rel=1e-5)


def test_the_margin_is_lbas():
    assert dense_triplet_loss(alignment()) == dense_triplet_loss(alignment(), 0.3)


def test_an_anchor_without_a_common_foreground_adds_nothing():
    """LbA's public code multiplies by the other images' masks as well; then this would not be zero."""
    case = alignment()
    case.comask_NL[0] = 0
    near_NL = case.positive_distance_NL.requires_grad_()
    dense_triplet_loss(case, 2.0).backward()
    assert not near_NL.grad[0].any()
    torch.testing.assert_close(near_NL.grad[1:], case.comask_NL[1:] / 15)
