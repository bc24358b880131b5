"""The public `align`, `soft_align` and `align_distance`: checks, choice of path, and their one custom op.

Legend: B images, L = H*W positions, C channels, N pairs.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from kernels.alignment import plain, reference
from kernels.alignment.checks import check_alignment, check_row_range, triton_obstacle
from kernels.common.dtypes import compute_dtype
from kernels.common.operator import Operator
from kernels.common.path import Backend, choose_path

# What the custom op returns: reconstruction, both distances and co-mask; then what the backward needs (`_forward`).
Aligned = tuple[
    torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor,
    torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor,
]  # fmt: skip


def align(
    features_BLC: torch.Tensor,
    mask_BL: torch.Tensor,
    anchor_N: torch.Tensor,
    positive_N: torch.Tensor,
    negative_N: torch.Tensor,
    beta: float,
    backend: Backend = "auto",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rebuild each anchor image from its positive target and measure its distance to both targets (method §4).

    The same as `soft_align` with the positives and `align_distance` with the negatives, in about half the launches.
    features_BLC: B x L x C, channels-last maps flattened, any floating dtype; mask_BL: B x L in [0, 1], carries no
    gradient (`feature_mask`); anchor_N, positive_N, negative_N: int64 rows of the batch; beta > 0 multiplies the
    cosine similarity. Returns reconstruction N x L x C (dtype of the features), the distances N x L to the positive
    and to the negative reconstruction and the co-mask N x L, all float32 (float64 for float64); the co-mask carries no
    gradient. N may be 0.
    backend: `auto`, `reference` (the definition) or `triton`.
    Raises TypeError or ValueError before any work. On a GPU a pair with a row outside the batch gives NaN instead:
    reading the rows to check them would stall the stream.
    """
    check_alignment(features_BLC, mask_BL, anchor_N, positive_N, beta)
    check_alignment(features_BLC, mask_BL, anchor_N, negative_N, beta)
    obstacle = triton_obstacle(features_BLC, len(positive_N) + len(negative_N))
    path = choose_path(backend, features_BLC, obstacle)
    if path == "reference":
        for target_N in (positive_N, negative_N):
            check_row_range(anchor_N, target_N, len(features_BLC))
        return reference.align(features_BLC, mask_BL, anchor_N, positive_N, negative_N, beta)
    inputs = (features_BLC, mask_BL.detach(), anchor_N, positive_N, negative_N, float(beta), path)
    reconstruction, positive_distance, negative_distance, comask = _operator(*inputs)[:4]
    return reconstruction, positive_distance, negative_distance, comask.detach()


def soft_align(
    features_BLC: torch.Tensor,
    mask_BL: torch.Tensor,
    anchor_N: torch.Tensor,
    target_N: torch.Tensor,
    beta: float,
    backend: Backend = "auto",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rebuild each anchor image from its target's features (paper §4; LbA's CMAlign; method §4, eq. 1-6).

    Arguments, errors and backends as in `align`. Returns reconstruction N x L x C (dtype of the features), distance
    N x L = |f - reconstruction| over channels and co-mask N x L, both float32 (float64 for float64).
    """
    check_alignment(features_BLC, mask_BL, anchor_N, target_N, beta)
    path = choose_path(backend, features_BLC, triton_obstacle(features_BLC, len(target_N)))
    if path == "reference":
        check_row_range(anchor_N, target_N, len(features_BLC))
        return reference.soft_align(features_BLC, mask_BL, anchor_N, target_N, beta)
    inputs = (features_BLC, mask_BL.detach(), anchor_N, target_N, target_N[:0], float(beta), path)
    reconstruction, distance, _, comask = _operator(*inputs)[:4]
    return reconstruction, distance, comask.detach()


def align_distance(
    features_BLC: torch.Tensor,
    mask_BL: torch.Tensor,
    anchor_N: torch.Tensor,
    target_N: torch.Tensor,
    beta: float,
    backend: Backend = "auto",
) -> torch.Tensor:
    """The distance of `soft_align` without its reconstruction: nothing of size N x L x C is written (method §4.1).

    Arguments, errors and backends as in `align`. Returns distance N x L over channels, float32 (float64 for float64).
    """
    check_alignment(features_BLC, mask_BL, anchor_N, target_N, beta)
    path = choose_path(backend, features_BLC, triton_obstacle(features_BLC, len(target_N)))
    if path == "reference":
        check_row_range(anchor_N, target_N, len(features_BLC))
        return reference.align_distance(features_BLC, mask_BL, anchor_N, target_N, beta)
    inputs = (features_BLC, mask_BL.detach(), anchor_N, target_N[:0], target_N, float(beta), path)
    distance: torch.Tensor = _operator(*inputs)[2]
    return distance


def _forward(
    features_BLC: torch.Tensor,
    mask_BL: torch.Tensor,
    anchor_N: torch.Tensor,
    positive_N: torch.Tensor,
    negative_N: torch.Tensor,
    beta: float,
    path: str,
) -> Aligned:
    """Return reconstruction, both distances and co-mask; then what the backward needs, with positives first.

    That is |f - w| and the similarities; then, on the plain path, the Gram matrices of the targets and an empty tensor,
    and in Triton the weights before they are divided by their sum, and norms and inverse sums in one tensor
    (B + pairs) x L.
    """
    for target_N in (positive_N, negative_N):
        check_row_range(anchor_N, target_N, len(features_BLC))
    inputs = (features_BLC, mask_BL, anchor_N, positive_N, negative_N, beta)
    with torch.autocast(features_BLC.device.type, enabled=False):
        aligned: Aligned = _module(path).forward(*inputs)
        return aligned


def _module(path: str) -> ModuleType:
    if path == "plain":
        return plain
    from kernels.alignment import kernel  # here, because it imports Triton

    return kernel


def _fake(
    features_BLC: torch.Tensor,
    mask_BL: torch.Tensor,
    anchor_N: torch.Tensor,
    positive_N: torch.Tensor,
    negative_N: torch.Tensor,
    beta: float,
    path: str,
) -> Aligned:
    positives, (images, length, channels) = len(positive_N), features_BLC.shape
    pairs, dtype = positives + len(negative_N), compute_dtype(features_BLC)
    reconstruction = features_BLC.new_empty(positives, length, channels)
    root = features_BLC.new_empty(pairs, length, dtype=dtype)
    near, comask = (root.new_empty(positives, length) for _ in range(2))
    far = root.new_empty(pairs - positives, length)
    if path == "plain":
        similarity = features_BLC.new_empty(pairs, length, length, dtype=dtype)
        kept = similarity.new_empty(images, length, length), similarity.new_empty(0)
    else:
        similarity = features_BLC.new_empty(pairs, length, (length + 15) // 16 * 16, dtype=dtype)
        kept = torch.empty_like(similarity, dtype=features_BLC.dtype), root.new_empty(images + pairs, length)
    return reconstruction, near, far, comask, root, similarity, *kept


def _backward(
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
    similarity_NLP: torch.Tensor,
    kept: torch.Tensor,
    sums: torch.Tensor,
    path: str,
) -> torch.Tensor:
    inputs = (features_BLC, mask_BL, anchor_N, positive_N, negative_N, beta)
    saved = (reconstruction_NLC, root_NL, similarity_NLP, kept, sums)
    with torch.autocast(features_BLC.device.type, enabled=False):
        gradient: torch.Tensor = _module(path).backward(
            grad_reconstruction_NLC, grad_positive_NL, grad_negative_NL, *inputs, *saved
        )
        return gradient


def _backward_fake(
    grad_reconstruction_NLC: torch.Tensor,
    grad_positive_NL: torch.Tensor,
    grad_negative_NL: torch.Tensor,
    features_BLC: torch.Tensor,
    *saved: Any,
) -> torch.Tensor:
    return torch.empty_like(features_BLC, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    *tensors, ctx.beta, ctx.path = inputs
    reconstruction, *_, root, similarity, kept, sums = output
    if ctx.path != "plain":
        reconstruction = reconstruction.new_empty(0)  # the kernels do not read it again
    ctx.save_for_backward(*tensors, reconstruction, root, similarity, kept, sums)
    ctx.set_materialize_grads(False)  # zeros for the five outputs that carry no gradient would cost as much as a kernel


def _differentiate(
    backward: Callable[..., Any], ctx: Any, *gradients: torch.Tensor | None
) -> tuple[torch.Tensor | None, ...]:
    tensors, saved = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
    features, _, _, positive, negative = tensors
    length, dtype = features.shape[1], compute_dtype(features)
    shapes = (len(positive), length, features.shape[2]), (len(positive), length), (len(negative), length)
    dtypes = (features.dtype, dtype, dtype)
    given = [
        features.new_zeros(shape, dtype=kind) if gradient is None else gradient
        for gradient, shape, kind in zip(gradients, shapes, dtypes, strict=False)
    ]
    return backward(*given, *tensors, ctx.beta, *saved, ctx.path), None, None, None, None, None, None


_operator = Operator("align", _forward, _fake, _backward, _backward_fake, _save, _differentiate)
