"""The alignment distance without a warp, in plain PyTorch, block by block (method §4.1; README.md here).

|f - w|^2 = |f|^2 - 2 sum_s P <f, f_k(s)> + P G P^T with the Gram matrix G = f_k f_k^T, computed once per target image.
Where w is so close to f that digits would cancel, w is computed and subtracted from f instead; this concerns few rows.
Legend: B images, L positions, C channels, N pairs, G pairs of a block; a are their anchors and k their targets.
"""

from collections.abc import Iterator

import torch

from kernels.alignment.plain_terms import (
    CANCELS,
    Gradient,
    Maps,
    add_products,
    add_rows,
    blocks,
    distance_floor,
    picked,
    similarity_backward,
)


def forward(
    maps: Maps,
    anchor_N: torch.Tensor,
    target_N: torch.Tensor,
    beta: float,
    root_NL: torch.Tensor,
    similarity_NLL: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the distance N x L and the Gram matrices B x L x L of the targets; zero for other images.

    Writes |f - w| into `root_NL`, and the similarities.
    """
    features, mask, norm, inverse = maps
    images, length, _ = features.shape
    gram = features.new_zeros(images, length, length)
    for _, (k,) in blocks(features, target_N.unique()):
        target = picked(features, k)
        gram[k] = torch.bmm(target, target.mT)
    for block, (a, k) in blocks(features, anchor_N, target_N):
        product = torch.bmm(picked(features, a), picked(features, k).mT)
        torch.mul(product, inverse[a].unsqueeze(2), out=similarity_NLL[block]).mul_(inverse[k].unsqueeze(1))
        probability = torch.softmax(beta * similarity_NLL[block], dim=-1)
        shift = torch.bmm(probability, picked(gram, k)).sub_(product, alpha=2)
        whole = norm[a].square()
        square = (probability * shift).sum(-1).add_(whole)
        for g, near in _near_rows(square < CANCELS * whole):
            pair = block.start + g
            warp = probability[g, near] @ features[target_N[pair]]
            square[g, near] = (warp - features[anchor_N[pair]][near]).square().sum(-1)
        torch.sqrt(square, out=root_NL[block])
    distance = mask[anchor_N] * torch.maximum(root_NL, distance_floor(norm[anchor_N]))
    return distance, gram


def _near_rows(near_GL: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """The pairs of a block that have rows where w is near f, and the numbers of these rows."""
    for g in near_GL.any(1).nonzero().flatten().tolist():
        yield g, near_GL[g].nonzero().squeeze(-1)


def backward(
    total: Gradient,
    grad_distance_NL: torch.Tensor,
    maps: Maps,
    anchor_N: torch.Tensor,
    target_N: torch.Tensor,
    beta: float,
    root_NL: torch.Tensor,
    similarity_NLL: torch.Tensor,
    gram_BLL: torch.Tensor,
) -> None:
    """Add the gradient of the features to `total`.

    With c = grad * m / |f - w|, the gradient of w is c (w - f), so that of P is c (P G - A) with A = f_a f_k^T. Three
    products with maps of size L x C remain, of which one is computed once per target image: (sum of P^T c P) f_k.
    """
    if len(target_N) == 0:
        return
    features, mask, norm, inverse = maps
    counts = root_NL > distance_floor(norm[anchor_N])  # no gradient flows where the floor applies
    slope = grad_distance_NL * mask[anchor_N]
    slope_NL = torch.where(counts, slope / torch.where(counts, root_NL, 1.0), 0.0)
    near_NL = counts & (root_NL.square() < CANCELS * norm[anchor_N].square())
    grad_gram = torch.zeros_like(gram_BLL)
    for block, (a, k) in blocks(features, anchor_N, target_N):
        anchor, target, similarity = picked(features, a), picked(features, k), similarity_NLL[block]
        probability = torch.softmax(beta * similarity, dim=-1)
        slope = slope_NL[block].masked_fill(near_NL[block], 0)
        sloped = probability * slope.unsqueeze(2)
        product = (similarity * norm[a].unsqueeze(2)).mul_(norm[k].unsqueeze(1))
        grad_probability = torch.bmm(probability, picked(gram_BLL, k)).sub_(product).mul_(slope.unsqueeze(2))
        for g, near in _near_rows(near_NL[block]):  # subtracted before they are multiplied, as in the forward
            pair = block.start + g
            rows, near_slope = probability[g, near], slope_NL[pair, near].unsqueeze(1)
            grad_warp = (rows @ target[g]).sub_(anchor[g, near]).mul_(near_slope)
            grad_probability[g, near] = grad_warp @ target[g].mT
            total.features[target_N[pair]].addmm_(rows.mT, grad_warp)
            total.features[anchor_N[pair]].index_add_(0, near, grad_warp, alpha=-1)
        grad, along_a, along_k = similarity_backward(probability, grad_probability, similarity, beta)
        add_rows(total.along, a, along_a * inverse[a].square() - slope)
        add_rows(total.along, k, along_k * inverse[k].square())
        grad.mul_(inverse[a].unsqueeze(2)).mul_(inverse[k].unsqueeze(1)).sub_(sloped)
        add_products(total.features, a, (grad, target))
        add_products(total.features, k, (grad.mT, anchor))
        add_products(grad_gram, k, (sloped.mT, probability))
    for _, (k,) in blocks(features, target_N.unique()):
        add_products(total.features, k, (picked(grad_gram, k), picked(features, k)))
