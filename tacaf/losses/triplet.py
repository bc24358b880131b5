"""Triplet losses on the pooled features before the neck, over the global batch: batch-hard, WRT (AGW), ADP (CAJ).

B rows of a rank, G rows of the global batch, C channels. Every row is an anchor; both modalities and all branches are
mined together, as in AGW, LbA and CAJ.
"""

from typing import Literal

import torch
import torch.nn.functional as F

from tacaf.distributed import gather_rows

TripletKind = Literal["batch_hard", "wrt", "adp"]
TripletUnit = Literal["absolute", "distance"]


def pairwise_distance(features_GC: torch.Tensor) -> torch.Tensor:
    """Euclidean distances G x G, float32, with a zero gradient if two rows coincide.

    Computed from the Gram matrix in float64 (ours), where differences do not cancel and TF32 is not used. For float32
    features, rows closer than a millionth of their length are equal: their distance and its gradient are 0, whereas the
    gradient of a plain square root would be NaN.
    """
    with torch.autocast(features_GC.device.type, enabled=False):
        values = features_GC.double()
        square_G = values.square().sum(1)
        sum_GG = square_G[:, None] + square_G[None, :]
        square_GG = sum_GG - 2 * values @ values.T
        apart_GG = square_GG > 1e-12 * sum_GG
        return torch.where(apart_GG, torch.where(apart_GG, square_GG, 1.0).sqrt(), 0.0).float()


def batch_hard(distance_GG: torch.Tensor, same_GG: torch.Tensor, margin: float) -> torch.Tensor:
    """The mean of relu(hardest positive - hardest negative + margin); LbA's margin is 0.3."""
    hardest_positive_G = distance_GG.masked_fill(~same_GG, 0.0).amax(1)
    hardest_negative_G = distance_GG.masked_fill(same_GG, torch.inf).amin(1)
    return F.relu(hardest_positive_G - hardest_negative_G + margin).mean()


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
