"""The alignment distance without a warp, in plain PyTorch, pair by pair (method §4.1; README.md here).

|f - w|^2 = |f|^2 - 2 sum_s P <f, f_k(s)> + P G P^T with the Gram matrix G = f_k f_k^T, once per target image.
Where w lies so near f that this cancels, the few rows concerned are warped and subtracted instead.
Legend: B images, L positions, C channels, N pairs; a the anchor, k the target of a pair.
"""

import torch

from kernels.alignment.plain_terms import CANCELS, distance_floor, norms, similarity_backward
from kernels.common.dtypes import compute_dtype


def forward(
    features_BLC: torch.Tensor, mask_BL: torch.Tensor, anchor_N: torch.Tensor, target_N: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """distance NxL; for backward |f - w| NxL, the similarities NxLxL and the Gram matrices BxLxL of the targets."""
    features = features_BLC.to(compute_dtype(features_BLC))
    norm, inverse = norms(features)
    (images, length, _), pairs = features.shape, len(anchor_N)
    similarity, root = features.new_empty(pairs, length, length), features.new_empty(pairs, length)
    gram = features.new_zeros(images, length, length)
    for k in target_N.unique().tolist():
        torch.mm(features[k], features[k].mT, out=gram[k])
    for n, (a, k) in enumerate(zip(anchor_N.tolist(), target_N.tolist(), strict=True)):
        product = torch.mm(features[a], features[k].mT)
        torch.mul(product, inverse[a].unsqueeze(1), out=similarity[n]).mul_(inverse[k])
        probability = torch.softmax(beta * similarity[n], dim=-1)
        shift = torch.mm(probability, gram[k]).sub_(product, alpha=2)
        square, whole = (probability * shift).sum(-1).add_(norm[a].square()), norm[a].square()
        near = (square < CANCELS * whole).nonzero().squeeze(-1)
        if len(near):
            square[near] = (probability[near] @ features[k] - features[a][near]).square().sum(-1)
        torch.sqrt(square, out=root[n])
    distance = mask_BL.to(features.dtype)[anchor_N] * torch.maximum(root, distance_floor(norm[anchor_N]))
    return distance, root, similarity, gram


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

    With c = grad * m / |f - w| the gradient of w is c (w - f), so that of P is c (P G - A), A = f_a f_k^T; and of the
    three products with maps of size L x C that remain, one is made once per target image: (sum of P^T c P) f_k.
    """
    features = features_BLC.to(compute_dtype(features_BLC))
    norm, inverse = norms(features)
    counts = root_NL > distance_floor(norm[anchor_N])  # nothing flows where the floor holds
    slope = grad_distance_NL * mask_BL.to(features.dtype)[anchor_N]
    slope_NL = torch.where(counts, slope / torch.where(counts, root_NL, 1.0), 0.0)
    gradient, along, grad_gram = torch.zeros_like(features), torch.zeros_like(norm), torch.zeros_like(gram_BLL)
    near_NL = counts & (root_NL.square() < CANCELS * norm[anchor_N].square())
    for n, (a, k) in enumerate(zip(anchor_N.tolist(), target_N.tolist(), strict=True)):
        probability = torch.softmax(beta * similarity_NLL[n], dim=-1)
        near = near_NL[n].nonzero().squeeze(-1)
        slope = slope_NL[n].index_fill(0, near, 0)
        sloped = probability * slope.unsqueeze(1)
        product = (similarity_NLL[n] * norm[a].unsqueeze(1)).mul_(norm[k])
        grad_probability = torch.mm(probability, gram_BLL[k]).sub_(product).mul_(slope.unsqueeze(1))
        if len(near):  # these rows are subtracted before they are multiplied, as in forward
            rows = probability[near]
            grad_warp = (rows @ features[k]).sub_(features[a][near]).mul_(slope_NL[n][near].unsqueeze(1))
            grad_probability[near] = grad_warp @ features[k].mT
            gradient[k].addmm_(rows.mT, grad_warp)
            gradient[a].index_add_(0, near, grad_warp, alpha=-1)
        grad, along_a, along_k = similarity_backward(probability, grad_probability, similarity_NLL[n], beta)
        along[a] += along_a * inverse[a].square() - slope
        along[k] += along_k * inverse[k].square()
        grad.mul_(inverse[a].unsqueeze(1)).mul_(inverse[k]).sub_(sloped)
        gradient[a].addmm_(grad, features[k])
        gradient[k].addmm_(grad.mT, features[a])
        grad_gram[k].addmm_(sloped.mT, probability)
    for k in target_N.unique().tolist():
        gradient[k].addmm_(grad_gram[k], features[k])
    return gradient.addcmul_(features, along.unsqueeze(-1), value=-1).to(features_BLC.dtype)
