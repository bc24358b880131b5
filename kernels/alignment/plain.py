"""The alignment in plain PyTorch, for a CPU: positives are rebuilt, negatives only measured (method §4.1).

Legend: B images, L positions, C channels, N pairs.
"""

import torch

from kernels.alignment import plain_distance, plain_soft_align
from kernels.common.dtypes import compute_dtype


def forward(
    features_BLC: torch.Tensor,
    mask_BL: torch.Tensor,
    anchor_N: torch.Tensor,
    positive_N: torch.Tensor,
    negative_N: torch.Tensor,
    beta: float,
) -> tuple[torch.Tensor, ...]:
    """Return reconstruction, distances and co-mask, and what the backward needs.

    That is |f - w|, similarities, Gram matrices and an empty tensor. Positive pairs come first; positive_N and
    negative_N each have one target per anchor, or are empty.
    """
    positives, negatives = len(positive_N), len(negative_N)
    rebuilt = plain_soft_align.forward(features_BLC, mask_BL, anchor_N[:positives], positive_N, beta)
    measured = plain_distance.forward(features_BLC, mask_BL, anchor_N[:negatives], negative_N, beta)
    reconstruction, distance, comask, root, similarity = rebuilt
    root, similarity = (torch.cat(parts) for parts in ((root, measured[1]), (similarity, measured[2])))
    return reconstruction, distance, measured[0], comask, root, similarity, measured[3], similarity.new_empty(0)


def backward(
    grad_reconstruction_NLC: torch.Tensor,
    grad_positive_NL: torch.Tensor,
    grad_negative_NL: torch.Tensor,
    features_BLC: torch.Tensor,
    mask_BL: torch.Tensor,
    anchor_N: torch.Tensor,
    positive_N: torch.Tensor,
    negative_N: torch.Tensor,
    beta: float,
    reconstruction_NLC: torch.Tensor,
    root_NL: torch.Tensor,
    similarity_NLL: torch.Tensor,
    gram_BLL: torch.Tensor,
    _: torch.Tensor,
) -> torch.Tensor:
    """The gradient of the features, B x L x C in their dtype."""
    count = len(positive_N)
    gradient = torch.zeros_like(features_BLC, dtype=compute_dtype(features_BLC))
    if count:
        inputs = (features_BLC, mask_BL, anchor_N, positive_N, beta)
        saved = (reconstruction_NLC, root_NL[:count], similarity_NLL[:count])
        gradient += plain_soft_align.backward(grad_reconstruction_NLC, grad_positive_NL, *inputs, *saved)
    if len(negative_N):
        inputs = (features_BLC, mask_BL, anchor_N, negative_N, beta)
        saved = (root_NL[count:], similarity_NLL[count:], gram_BLL)
        gradient += plain_distance.backward(grad_negative_NL, *inputs, *saved)
    return gradient.to(features_BLC.dtype)
