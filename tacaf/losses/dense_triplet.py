"""CMAAM's dense triplet loss: at every position, the positive reconstruction must be closer than the negative one.

N anchors, L positions.
"""

from typing import Literal

import torch
import torch.nn.functional as F

from tacaf.distributed import sum_over_ranks, world_size
from tacaf.interfaces import Alignment

DenseUnit = Literal["absolute", "margin", "distance"]


def dense_triplet_loss(alignment: Alignment, margin: float = 0.3, unit: DenseUnit = "absolute") -> torch.Tensor:
    """The mean over anchors and positions of Q * relu(d+ - d- + margin), a float32 scalar (LbA, method §4).

    Every anchor's hinge is weighted by its own co-mask; LbA's public code broadcasts the mask over other images.
    unit: `absolute` is LbA's. The meaning of a margin depends on the scale of the features, so two units use the
    detached mean distance m of the batch (ours): `margin` replaces margin by margin * m, `distance` replaces d by
    d / m.
    """
    gap_NL = alignment.positive_distance_NL.float() - alignment.negative_distance_NL.float()
    if unit == "margin":
        hinge_NL = F.relu(gap_NL + margin * mean_distance(alignment))
    elif unit == "distance":
        hinge_NL = F.relu(gap_NL / mean_distance(alignment).clamp_min(1e-12) + margin)
    else:
        hinge_NL = F.relu(gap_NL + margin)
    return (alignment.comask_NL.float() * hinge_NL).mean()


def mean_distance(alignment: Alignment) -> torch.Tensor:
    """The mean of d+ and d- over all ranks' anchors and positions, a float32 scalar without gradient.

    The distances include the anchor's person mask; where it is 0, the mean counts a distance of 0.
    """
    both_2NL = torch.stack([alignment.positive_distance_NL, alignment.negative_distance_NL]).detach().float()
    return sum_over_ranks(both_2NL.mean()) / world_size()
