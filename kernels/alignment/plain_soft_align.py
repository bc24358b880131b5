"""Soft alignment in plain PyTorch, block by block: the reference's algebra with less memory traffic (method §4.1).

What is kept for the backward is N x L x L. Derivation: README.md beside this file.
Legend: B images, L positions, C channels, N pairs, G pairs of a block; a are the anchors, k the targets and m the
anchors' masks.
"""

import torch

from kernels.alignment.mask import minmax
from kernels.alignment.plain_terms import (
    Gradient,
    Maps,
    add_products,
    add_rows,
    blocks,
    distance_floor,
    pairs_at_once,
    picked,
    similarity_backward,
)


def forward(
    maps: Maps,
    anchor_N: torch.Tensor,
    target_N: torch.Tensor,
    beta: float,
    reconstruction_NLC: torch.Tensor,
    root_NL: torch.Tensor,
    similarity_NLL: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return distance and co-mask, N x L. Writes the reconstruction, |f - w| into `root_NL`, and the similarities."""
    features, mask, norm, inverse = maps
    carried, buffer = torch.empty_like(root_NL), _buffer(features, len(anchor_N))
    for block, (a, k) in blocks(features, anchor_N, target_N):
        anchor, target, anchor_mask = picked(features, a), picked(features, k), mask[a].unsqueeze(2)
        similarity = torch.bmm(anchor, target.mT, out=similarity_NLL[block])
        similarity.mul_(inverse[a].unsqueeze(2)).mul_(inverse[k].unsqueeze(1))
        probability = torch.softmax(beta * similarity, dim=-1)
        shift = torch.bmm(probability, target, out=buffer[: len(anchor)]).sub_(anchor)  # w - f
        torch.linalg.vector_norm(shift, dim=-1, out=root_NL[block])
        torch.bmm(probability, mask[k].unsqueeze(2), out=carried[block].unsqueeze(2))
        if reconstruction_NLC.dtype == shift.dtype:  # f + m (w - f)
            torch.addcmul(anchor, shift, anchor_mask, out=reconstruction_NLC[block])
        else:
            reconstruction_NLC[block] = torch.addcmul(anchor, shift, anchor_mask)
    anchor_mask = mask[anchor_N]
    distance = anchor_mask * torch.maximum(root_NL, distance_floor(norm[anchor_N]))
    return distance, minmax(anchor_mask * carried)


def _buffer(features_BLC: torch.Tensor, pairs: int) -> torch.Tensor:
    """Room for the maps of a block, which every block uses again: fresh memory costs the time of a pass over it."""
    return features_BLC.new_empty(min(pairs, pairs_at_once(features_BLC)), *features_BLC.shape[1:])


def backward(
    total: Gradient,
    grad_reconstruction_NLC: torch.Tensor,
    grad_distance_NL: torch.Tensor,
    maps: Maps,
    anchor_N: torch.Tensor,
    target_N: torch.Tensor,
    beta: float,
    reconstruction_NLC: torch.Tensor,
    root_NL: torch.Tensor,
    similarity_NLL: torch.Tensor,
) -> None:
    """Add the gradient of the features to `total`."""
    features, mask, norm, inverse = maps
    # d = m |f - w|: dw = (grad / |f - w|) * m (w - f), and m (w - f) = reconstruction - f; no gradient flows where
    # the floor applies
    counts = root_NL > distance_floor(norm[anchor_N])
    slope_NL = torch.where(counts, grad_distance_NL / torch.where(counts, root_NL, 1.0), 0.0)
    exact = reconstruction_NLC.dtype == features.dtype  # a rounded reconstruction would spoil the small difference
    buffer = _buffer(features, len(anchor_N))
    for block, (a, k) in blocks(features, anchor_N, target_N):
        anchor, target, anchor_mask = picked(features, a), picked(features, k), mask[a].unsqueeze(2)
        similarity, grad_warp = similarity_NLL[block], buffer[: len(anchor)]
        probability = torch.softmax(beta * similarity, dim=-1)
        if exact:
            torch.sub(reconstruction_NLC[block], anchor, out=grad_warp)
        else:
            torch.bmm(probability, target, out=grad_warp).sub_(anchor).mul_(anchor_mask)
        grad_blend = grad_reconstruction_NLC[block].to(features.dtype)
        grad_warp.mul_(slope_NL[block].unsqueeze(2)).addcmul_(grad_blend, anchor_mask)
        grad_probability = torch.bmm(grad_warp, target.mT)
        grad, along_a, along_k = similarity_backward(probability, grad_probability, similarity, beta)
        add_rows(total.along, a, along_a * inverse[a].square())
        add_rows(total.along, k, along_k * inverse[k].square())
        grad.mul_(inverse[a].unsqueeze(2)).mul_(inverse[k].unsqueeze(1))
        add_products(total.features, k, (probability.mT, grad_warp), (grad.mT, anchor))
        add_products(total.features, a, (grad, target))
        add_rows(total.features, a, grad_blend)
        add_rows(total.features, a, grad_warp, alpha=-1)
