"""Soft alignment in plain PyTorch, block by block: the reference's algebra with less memory traffic (method §4.1).

The maps of a block's pairs stay in the cache, and what is kept for the backward is N x L x L. A block of large maps is
one pair: gathers are views, and products are added to the gradient in place. Derivation: README.md beside this file.
Legend: B images, L positions, C channels, N pairs, G pairs of a block; a are the anchors, k the targets and m the
anchors' masks.
"""

import torch

from kernels.alignment.mask import minmax
from kernels.alignment.plain_terms import (
    add_products,
    add_rows,
    blocks,
    distance_floor,
    norms,
    pairs_at_once,
    picked,
    similarity_backward,
)
from kernels.common.dtypes import compute_dtype


def forward(
    features_BLC: torch.Tensor, mask_BL: torch.Tensor, anchor_N: torch.Tensor, target_N: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return reconstruction N x L x C, distance N x L and co-mask N x L, and what the backward needs.

    That is |f - w| N x L and the similarities N x L x L.
    """
    features = features_BLC.to(compute_dtype(features_BLC))
    mask = mask_BL.to(features.dtype)
    norm, inverse = norms(features)
    pairs, (_, length, channels) = len(anchor_N), features.shape
    reconstruction = features_BLC.new_empty(pairs, length, channels)
    similarity = features.new_empty(pairs, length, length)
    root, carried = features.new_empty(pairs, length), features.new_empty(pairs, length)
    buffer = features.new_empty(pairs_at_once(features), length, channels)
    for block, (a, k) in blocks(features, anchor_N, target_N):
        anchor, target, anchor_mask = picked(features, a), picked(features, k), mask[a].unsqueeze(2)
        torch.bmm(anchor, target.mT, out=similarity[block])
        similarity[block].mul_(inverse[a].unsqueeze(2)).mul_(inverse[k].unsqueeze(1))
        probability = torch.softmax(beta * similarity[block], dim=-1)
        shift = torch.bmm(probability, target, out=buffer[: len(a)]).sub_(anchor)  # w - f
        torch.linalg.vector_norm(shift, dim=-1, out=root[block])
        torch.bmm(probability, mask[k].unsqueeze(2), out=carried[block].unsqueeze(2))
        if reconstruction.dtype == shift.dtype:  # f + m (w - f)
            torch.addcmul(anchor, shift, anchor_mask, out=reconstruction[block])
        else:
            reconstruction[block] = torch.addcmul(anchor, shift, anchor_mask)
    anchor_mask = mask[anchor_N]
    distance = anchor_mask * torch.maximum(root, distance_floor(norm[anchor_N]))
    return reconstruction, distance, minmax(anchor_mask * carried), root, similarity


def backward(
    grad_reconstruction_NLC: torch.Tensor,
    grad_distance_NL: torch.Tensor,
    features_BLC: torch.Tensor,
    mask_BL: torch.Tensor,
    anchor_N: torch.Tensor,
    target_N: torch.Tensor,
    beta: float,
    reconstruction_NLC: torch.Tensor,
    root_NL: torch.Tensor,
    similarity_NLL: torch.Tensor,
) -> torch.Tensor:
    """The gradient of the features, B x L x C. Pairs are added in their order, so it is the same every time."""
    features = features_BLC.to(compute_dtype(features_BLC))
    mask = mask_BL.to(features.dtype)
    norm, inverse = norms(features)
    gradient, along = torch.zeros_like(features), torch.zeros_like(norm)
    # d = m |f - w|: dw = (grad / |f - w|) * m (w - f), and m (w - f) = reconstruction - f; no gradient flows where
    # the floor applies
    counts = root_NL > distance_floor(norm[anchor_N])
    slope_NL = torch.where(counts, grad_distance_NL / torch.where(counts, root_NL, 1.0), 0.0)
    exact = reconstruction_NLC.dtype == features.dtype  # a rounded reconstruction would spoil the small difference
    buffer = features.new_empty(pairs_at_once(features), *features.shape[1:])
    for block, (a, k) in blocks(features, anchor_N, target_N):
        anchor, target, anchor_mask = picked(features, a), picked(features, k), mask[a].unsqueeze(2)
        probability, grad_warp = torch.softmax(beta * similarity_NLL[block], dim=-1), buffer[: len(a)]
        if exact:
            torch.sub(reconstruction_NLC[block], anchor, out=grad_warp)
        else:
            torch.bmm(probability, target, out=grad_warp).sub_(anchor).mul_(anchor_mask)
        grad_blend = grad_reconstruction_NLC[block].to(features.dtype)
        grad_warp.mul_(slope_NL[block].unsqueeze(2)).addcmul_(grad_blend, anchor_mask)
        grad_probability = torch.bmm(grad_warp, target.mT)
        grad, along_a, along_k = similarity_backward(probability, grad_probability, similarity_NLL[block], beta)
        add_rows(along, a, along_a * inverse[a].square())
        add_rows(along, k, along_k * inverse[k].square())
        grad.mul_(inverse[a].unsqueeze(2)).mul_(inverse[k].unsqueeze(1))
        add_products(gradient, k, (probability.mT, grad_warp), (grad.mT, anchor))
        add_products(gradient, a, (grad, target))
        add_rows(gradient, a, grad_blend)
        add_rows(gradient, a, grad_warp, alpha=-1)
    return gradient.addcmul_(features, along.unsqueeze(-1), value=-1).to(features_BLC.dtype)
