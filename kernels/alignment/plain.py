"""The alignment in plain PyTorch, for a CPU: positives are rebuilt, negatives only measured (method §4.1).

Legend: B images, L positions, C channels, N pairs.
"""

import torch

from kernels.alignment import plain_distance, plain_soft_align
from kernels.alignment.plain_terms import Gradient, maps_of


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
    maps, (_, length, channels) = maps_of(features_BLC, mask_BL), features_BLC.shape
    count, pairs = len(positive_N), len(positive_N) + len(negative_N)
    reconstruction = features_BLC.new_empty(count, length, channels)
    root, similarity = maps.norm.new_empty(pairs, length), maps.norm.new_empty(pairs, length, length)
    near, comask = plain_soft_align.forward(
        maps, anchor_N[:count], positive_N, beta, reconstruction, root[:count], similarity[:count]
    )
    far, gram = plain_distance.forward(
        maps, anchor_N[: len(negative_N)], negative_N, beta, root[count:], similarity[count:]
    )
    return reconstruction, near, far, comask, root, similarity, gram, root.new_empty(0)


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
    """The gradient of the features, B x L x C in their dtype.

    Pairs are added in their order, so it is the same every time.
    """
    maps, count = maps_of(features_BLC, mask_BL), len(positive_N)
    total = Gradient(torch.zeros_like(maps.features), torch.zeros_like(maps.norm))
    saved = reconstruction_NLC, root_NL[:count], similarity_NLL[:count]
    grads = grad_reconstruction_NLC, grad_positive_NL
    plain_soft_align.backward(total, *grads, maps, anchor_N[:count], positive_N, beta, *saved)
    saved = root_NL[count:], similarity_NLL[count:], gram_BLL
    plain_distance.backward(total, grad_negative_NL, maps, anchor_N[: len(negative_N)], negative_N, beta, *saved)
    return total.features.addcmul_(maps.features, total.along.unsqueeze(2), value=-1).to(features_BLC.dtype)
