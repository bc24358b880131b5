"""Triplet losses on the pooled features before the neck, over the global batch: batch-hard, WRT (AGW), ADP (CAJ).

B rows of a rank, G rows of the global batch, C channels. Every row is an anchor; both modalities and all branches are
mined together, as in AGW, LbA and CAJ.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from tacaf.distributed import gather_rows

TripletKind = Literal["batch_hard", "wrt", "adp"]
TripletUnit = Literal["absolute", "distance"]


class _Distance(torch.autograd.Function):
    """Rows G x C in float64 to their distances G x G in float64. Its gradient, written out, takes a third of the
    launches of automatic differentiation.
    """

    @staticmethod
    def forward(ctx: Any, values_GC: torch.Tensor) -> torch.Tensor:
        square_G = values_GC.square().sum(1)
        sum_GG = square_G[:, None] + square_G
        square_GG = torch.addmm(sum_GG, values_GC, values_GC.T, alpha=-2)
        # The inverse 0 makes distance and gradient 0.
        inverse_GG = square_GG.rsqrt().masked_fill_(square_GG <= 1e-12 * sum_GG, 0.0)
        ctx.save_for_backward(values_GC, inverse_GG)
        return square_GG * inverse_GG

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_GG: torch.Tensor) -> torch.Tensor:
        """dx_i = Σ_j w_ij (x_i - x_j) with w_ij = (g_ij + g_ji) / |x_i - x_j|."""
        values_GC, inverse_GG = ctx.saved_tensors
        weight_GG = gradient_GG * inverse_GG
        weight_GG = weight_GG + weight_GG.T
        return torch.addmm(weight_GG.sum(1, keepdim=True) * values_GC, weight_GG, values_GC, alpha=-1)


def pairwise_distance(features_GC: torch.Tensor) -> torch.Tensor:
    """Euclidean distances G x G, float32, with a zero gradient if two rows coincide.

    Computed from the Gram matrix in float64 (ours), where differences do not cancel and TF32 is not used. For float32
    features, rows closer than a millionth of their length are equal: their distance and its gradient are 0, whereas the
    gradient of a plain square root would be NaN.
    """
    with torch.autocast(features_GC.device.type, enabled=False):
        distance_GG: torch.Tensor = _Distance.apply(features_GC.double())
        return distance_GG.float()


class _HardestGap(torch.autograd.Function):
    """For each row the distance to the hardest positive less that to the hardest negative: G. Without a negative it is
    the lowest number there is. The gradient has two numbers in a row, and is written as such.
    """

    @staticmethod
    def forward(ctx: Any, distance_GG: torch.Tensor, same_GG: torch.Tensor) -> torch.Tensor:
        positive_G1, near_G1 = (distance_GG * same_GG).max(1, keepdim=True)
        beyond_GG = torch.add(distance_GG, same_GG, alpha=torch.finfo(distance_GG.dtype).max)  # behind every negative
        negative_G1, far_G1 = beyond_GG.min(1, keepdim=True)
        ctx.save_for_backward(near_G1, far_G1)
        return (positive_G1 - negative_G1).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_G: torch.Tensor) -> tuple[torch.Tensor, None]:
        near_G1, far_G1 = ctx.saved_tensors
        gradient_G1 = gradient_G[:, None]
        rows = gradient_G.new_zeros(len(gradient_G), len(gradient_G))
        return rows.scatter_(1, near_G1, gradient_G1).scatter_(1, far_G1, -gradient_G1), None


def batch_hard(distance_GG: torch.Tensor, same_GG: torch.Tensor, margin: float) -> torch.Tensor:
    """mean relu(hardest positive - hardest negative + margin); LbA's margin is .3. Of equally hard rows one counts."""
    gap_G: torch.Tensor = _HardestGap.apply(distance_GG, same_GG)
    return F.relu(gap_G + margin).mean()


def _softmax_mean(distance_GG: torch.Tensor, chosen_GG: torch.Tensor, sign: float) -> torch.Tensor:
    """Per row, the mean of the chosen distances, weighted by their softmax(sign * distance); 0 if none is chosen."""
    lowest = torch.finfo(distance_GG.dtype).min
    weight_GG = (sign * distance_GG).masked_fill(~chosen_GG, lowest).softmax(1) * chosen_GG
    return (weight_GG * distance_GG).sum(1)


def weighted_regularisation(distance_GG: torch.Tensor, same_GG: torch.Tensor) -> torch.Tensor:
    """WRT: the mean of log(1 + exp(d+ - d-)), with d+ and d- softmax-weighted over all positives and negatives (AGW).

    The anchor itself counts as a positive at distance 0, as in AGW's code.
    """
    positive_G = _softmax_mean(distance_GG, same_GG, 1.0)
    negative_G = _softmax_mean(distance_GG, ~same_GG, -1.0)
    return F.softplus(positive_G - negative_G).mean()


def adaptive(distance_GG: torch.Tensor, same_GG: torch.Tensor) -> torch.Tensor:
    """ADP: WRT on the signed square of d+ - d- (CAJ, alpha = gamma = 1).

    CAJ clamps the square at 88 against overflow, where its loss has no gradient; softplus does not overflow, so there
    is no clamp here.
    """
    gap_G = _softmax_mean(distance_GG, same_GG, 1.0) - _softmax_mean(distance_GG, ~same_GG, -1.0)
    return F.softplus(gap_G * gap_G.abs()).mean()


def in_mean_distances(distance_GG: torch.Tensor) -> torch.Tensor:
    """The distances in units of their mean over all pairs of different rows; zeros stay zeros.

    The mean has a gradient, so that the loss does not depend on the scale of the features: with a constant in its
    place, shrinking the features would lower the loss.
    """
    rows = len(distance_GG)
    return distance_GG / (distance_GG.sum() / max(1, rows * (rows - 1))).clamp_min(1e-12)


def triplet_loss(
    pooled_BC: torch.Tensor,
    label_B: torch.Tensor,
    margin: float = 0.3,
    kind: TripletKind = "batch_hard",
    unit: TripletUnit = "absolute",
) -> torch.Tensor:
    """The triplet loss over the rows of all ranks, a float32 scalar; the same number on every rank.

    Rows are gathered with gradient, so averaging parameter gradients over ranks gives the gradient of the whole batch.
    margin is used only by batch_hard. unit: `absolute` as in AGW, LbA and CAJ; `distance` measures distances in units
    of the batch's mean distance (ours).
    """
    label_G = gather_rows(label_B)
    same_GG = label_G[:, None] == label_G[None, :]
    distance_GG = pairwise_distance(gather_rows(pooled_BC))
    if unit == "distance":
        distance_GG = in_mean_distances(distance_GG)
    if kind == "wrt":
        return weighted_regularisation(distance_GG, same_GG)
    if kind == "adp":
        return adaptive(distance_GG, same_GG)
    return batch_hard(distance_GG, same_GG, margin)
