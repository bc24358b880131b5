"""The alignment distance without a warp, in plain PyTorch, block by block (method §4.1; README.md here).

|f - w|^2 = |f|^2 - 2 sum_s P <f, f_k(s)> + P G P^T with the Gram matrix G = f_k f_k^T, computed once per target image.
Where w is so close to f that digits would cancel, w is computed and subtracted from f instead; this concerns few rows.
Legend: B images, L positions, C channels, N pairs, G pairs of a block; a are their anchors and k their targets.
"""

from collections.abc import Iterator

import torch

from kernels.alignment.plain_terms import (
    CANCELS,
    add_products,
    add_rows,
    blocks,
    distance_floor,
    norms,
    picked,
    similarity_backward,
)
from kernels.common.dtypes import compute_dtype


def forward(
    features_BLC: torch.Tensor, mask_BL: torch.Tensor, anchor_N: torch.Tensor, target_N: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the distance N x L, and what the backward needs.

    That is |f - w| N x L, the similarities N x L x L and the Gram matrices B x L x L of the targets.
    """
    features = features_BLC.to(compute_dtype(features_BLC))
    norm, inverse = norms(features)
    (images, length, _), pairs = features.shape, len(anchor_N)
    similarity, root = features.new_empty(pairs, length, length), features.new_empty(pairs, length)
    gram = features.new_zeros(images, length, length)
    for k in target_N.unique().tolist():
        torch.mm(features[k], features[k].mT, out=gram[k])
    for block, (a, k) in blocks(features, anchor_N, target_N):
        product = torch.bmm(picked(features, a), picked(features, k).mT)
        torch.mul(product, inverse[a].unsqueeze(2), out=similarity[block]).mul_(inverse[k].unsqueeze(1))
        probability = torch.softmax(beta * similarity[block], dim=-1)
        shift = torch.bmm(probability, picked(gram, k)).sub_(product, alpha=2)
        whole = norm[a].square()
        square = (probability * shift).sum(-1).add_(whole)
        for g, near in _near_rows(square < CANCELS * whole):
            warp = probability[g, near] @ features[k[g]]
            square[g, near] = (warp - features[a[g]][near]).square().sum(-1)
        torch.sqrt(square, out=root[block])
    distance = mask_BL.to(features.dtype)[anchor_N] * torch.maximum(root, distance_floor(norm[anchor_N]))
    return distance, root, similarity, gram


def _near_rows(near_GL: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """The pairs of a block that have rows where w is near f, and the numbers of these rows."""
    for g in near_GL.any(1).nonzero().flatten().tolist():
        yield g, near_GL[g].nonzero().squeeze(-1)


def backward(
    grad_distance_NL: torch.Tensor,
    features_BLC: torch.Tensor,
    mask_BL: torch.Tensor,
    anchor_N: torch.Tensor,
    target_N: torch.Tensor,
    beta: float,
    root_NL: torch.Tensor,
    similarity_NLL: torch.Tensor,
    gram_BLL: torch.Tensor,
) -> torch.Tensor:
    """The gradient of the features, B x L x C. Pairs are added in their order, so it is the same every time.

    With c = grad * m / |f - w|, the gradient of w is c (w - f), so that of P is c (P G - A) with A = f_a f_k^T. Three
    products with maps of size L x C remain, of which one is computed once per target image: (sum of P^T c P) f_k.
    """
    features = features_BLC.to(compute_dtype(features_BLC))
    norm, inverse = norms(features)
    counts = root_NL > distance_floor(norm[anchor_N])  # no gradient flows where the floor applies
    slope = grad_distance_NL * mask_BL.to(features.dtype)[anchor_N]
    slope_NL = torch.where(counts, slope / torch.where(counts, root_NL, 1.0), 0.0)
    gradient, along, grad_gram = torch.zeros_like(features), torch.zeros_like(norm), torch.zeros_like(gram_BLL)
    near_NL = counts & (root_NL.square() < CANCELS * norm[anchor_N].square())
    for block, (a, k) in blocks(features, anchor_N, target_N):
        anchor, target, similarity = picked(features, a), picked(features, k), similarity_NLL[block]
        probability = torch.softmax(beta * similarity, dim=-1)
        slope = slope_NL[block].masked_fill(near_NL[block], 0)
        sloped = probability * slope.unsqueeze(2)
        product = (similarity * norm[a].unsqueeze(2)).mul_(norm[k].unsqueeze(1))
        grad_probability = torch.bmm(probability, picked(gram_BLL, k)).sub_(product).mul_(slope.unsqueeze(2))
        for g, near in _near_rows(near_NL[block]):  # subtracted before they are multiplied, as in the forward
            rows, near_slope = probability[g, near], slope_NL[block][g, near].unsqueeze(1)
            grad_warp = (rows @ target[g]).sub_(anchor[g, near]).mul_(near_slope)
            grad_probability[g, near] = grad_warp @ target[g].mT
            gradient[k[g]].addmm_(rows.mT, grad_warp)
            gradient[a[g]].index_add_(0, near, grad_warp, alpha=-1)
        grad, along_a, along_k = similarity_backward(probability, grad_probability, similarity, beta)
        add_rows(along, a, along_a * inverse[a].square() - slope)
        add_rows(along, k, along_k * inverse[k].square())
        grad.mul_(inverse[a].unsqueeze(2)).mul_(inverse[k].unsqueeze(1)).sub_(sloped)
        add_products(gradient, a, (grad, target))
        add_products(gradient, k, (grad.mT, anchor))
        add_products(grad_gram, k, (sloped.mT, probability))
    for k in target_N.unique().tolist():
        gradient[k].addmm_(grad_gram[k], features[k])
    return gradient.addcmul_(features, along.unsqueeze(-1), value=-1).to(features_BLC.dtype)
