"""Soft alignment in plain PyTorch, pair by pair: the reference's algebra with less memory traffic (method §4.1).

One pair's maps stay in the cache, gathers are views, every product writes into a buffer or adds into the gradient in
place, and what is kept for backward is N x L x L. Derivation: README.md beside this file.
Legend: B images, L positions, C channels, N pairs; a the anchor, k the target of a pair; m the anchor's mask.
"""

import torch

from kernels.alignment.mask import minmax
from kernels.alignment.plain_terms import distance_floor, norms, similarity_backward
from kernels.common.dtypes import compute_dtype


def forward(
    features_BLC: torch.Tensor, mask_BL: torch.Tensor, anchor_N: torch.Tensor, target_N: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """reconstruction NxLxC, distance NxL, co-mask NxL, and for backward |f - w| NxL and the similarities NxLxL."""
    features = features_BLC.to(compute_dtype(features_BLC))
    mask = mask_BL.to(features.dtype)
    norm, inverse = norms(features)
    pairs, (_, length, channels) = len(anchor_N), features.shape
    reconstruction = features_BLC.new_empty(pairs, length, channels)
    similarity = features.new_empty(pairs, length, length)
    root, carried = features.new_empty(pairs, length), features.new_empty(pairs, length)
    shift = features.new_empty(length, channels)
    for n, (a, k) in enumerate(zip(anchor_N.tolist(), target_N.tolist(), strict=True)):
        torch.mm(features[a], features[k].mT, out=similarity[n])
        similarity[n].mul_(inverse[a].unsqueeze(1)).mul_(inverse[k])
        probability = torch.softmax(beta * similarity[n], dim=-1)
        torch.mm(probability, features[k], out=shift).sub_(features[a])  # w - f
        torch.linalg.vector_norm(shift, dim=-1, out=root[n])
        torch.mv(probability, mask[k], out=carried[n])
        if reconstruction.dtype == shift.dtype:  # f + m (w - f)
            torch.addcmul(features[a], shift, mask[a].unsqueeze(1), out=reconstruction[n])
        else:
            reconstruction[n] = torch.addcmul(features[a], shift, mask[a].unsqueeze(1))
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
    # d = m |f - w|: dw = (grad / |f - w|) * m (w - f), and m (w - f) = reconstruction - f; nothing where the floor
    # holds
    counts = root_NL > distance_floor(norm[anchor_N])
    slope_NL = torch.where(counts, grad_distance_NL / torch.where(counts, root_NL, 1.0), 0.0)
    exact = reconstruction_NLC.dtype == features.dtype  # a rounded reconstruction would spoil the small difference
    grad_warp = torch.empty_like(features[0])
    for n, (a, k) in enumerate(zip(anchor_N.tolist(), target_N.tolist(), strict=True)):
        probability = torch.softmax(beta * similarity_NLL[n], dim=-1)
        anchor_mask = mask[a].unsqueeze(1)
        if exact:
            torch.sub(reconstruction_NLC[n], features[a], out=grad_warp)
        else:
            torch.mm(probability, features[k], out=grad_warp).sub_(features[a]).mul_(anchor_mask)
        grad_blend = grad_reconstruction_NLC[n].to(features.dtype)
        grad_warp.mul_(slope_NL[n].unsqueeze(1)).addcmul_(grad_blend, anchor_mask)
        grad_probability = torch.mm(grad_warp, features[k].mT)
        grad, along_a, along_k = similarity_backward(probability, grad_probability, similarity_NLL[n], beta)
        along[a] += along_a * inverse[a].square()
        along[k] += along_k * inverse[k].square()
        grad.mul_(inverse[a].unsqueeze(1)).mul_(inverse[k])
        gradient[k].addmm_(probability.mT, grad_warp).addmm_(grad.mT, features[a])
        gradient[a].addmm_(grad, features[k]).add_(grad_blend).sub_(grad_warp)
    return gradient.addcmul_(features, along.unsqueeze(-1), value=-1).to(features_BLC.dtype)
