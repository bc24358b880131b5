"""CMAAM's dense triplet: at every position the positive reconstruction must be closer than the negative one.

N anchors, L positions.
"""

import torch
import torch.nn.functional as F

from tacaf.interfaces import Alignment


def dense_triplet_loss(alignment: Alignment, margin: float = 0.3) -> torch.Tensor:
    """mean over anchors and positions of Q * relu(d+ - d- + margin), a float32 scalar (LbA, method §4).

    Every anchor's hinge is weighted by its own co-mask; LbA's public code broadcasts the mask over other images.
    """
    hinge_NL = F.relu(alignment.positive_distance_NL.float() - alignment.negative_distance_NL.float() + margin)
    return (alignment.comask_NL.float() * hinge_NL).mean()
