"""The public `align_distance`: checks, choice of path, and the custom op with its fake and its backward.

Legend: B images, L = H*W positions, C channels, N pairs.
"""

from types import ModuleType

import torch

from kernels.align_distance import plain, reference
from kernels.common import (
    alignment_obstacle,
    check_alignment,
    check_row_range,
    choose_path,
    compute_dtype,
    refuse_double_backward,
)


def align_distance(
    features_BLC: torch.Tensor,
    mask_BL: torch.Tensor,
    anchor_N: torch.Tensor,
    target_N: torch.Tensor,
    beta: float,
    backend: str = "auto",
) -> torch.Tensor:
    """The distance `soft_align` would return, without its reconstruction: nothing N x L x C is written (method §4.1).

    features_BLC: B x L x C, channels-last maps flattened, any floating dtype; mask_BL: B x L in [0, 1], carries no
    gradient (`feature_mask`); anchor_N, target_N: int64 rows of the batch; beta > 0 multiplies the cosine similarity.
    Returns distance N x L over channels, float32 (float64 for float64). N may be 0.
    backend: `auto`, `reference` (the definition) or `triton`.
    Raises TypeError or ValueError before any work. On a GPU a pair with a row outside the batch gives NaN instead:
    reading the rows to check them would stall the stream.
    """
    check_alignment(features_BLC, mask_BL, anchor_N, target_N, beta)
    path = choose_path(backend, features_BLC, alignment_obstacle(features_BLC))
    if path == "reference":
        check_row_range(anchor_N, target_N, len(features_BLC))
        return reference.align_distance(features_BLC, mask_BL, anchor_N, target_N, beta)
    return _forward(features_BLC, mask_BL.detach(), anchor_N, target_N, float(beta), path)[0]


def _module(path: str) -> ModuleType:
    if path == "plain":
        return plain
    from kernels.align_distance import kernel  # here, because it imports Triton

    return kernel


@torch.library.custom_op("kernels::align_distance", mutates_args=())
def _forward(
    features_BLC: torch.Tensor,
    mask_BL: torch.Tensor,
    anchor_N: torch.Tensor,
    target_N: torch.Tensor,
    beta: float,
    path: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    check_row_range(anchor_N, target_N, len(features_BLC))
    with torch.autocast(features_BLC.device.type, enabled=False):
        return _module(path).forward(features_BLC, mask_BL, anchor_N, target_N, beta)


@_forward.register_fake
def _(
    features_BLC: torch.Tensor,
    mask_BL: torch.Tensor,
    anchor_N: torch.Tensor,
    target_N: torch.Tensor,
    beta: float,
    path: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    pairs, (images, length, _) = len(anchor_N), features_BLC.shape
    sizes = ((pairs, length), (pairs, length), (pairs, length, length), (images, length, length))
    distance, root, similarity, gram = (features_BLC.new_empty(s, dtype=compute_dtype(features_BLC)) for s in sizes)
    return distance, root, similarity, gram


@torch.library.custom_op("kernels::align_distance_backward", mutates_args=())
def _backward(
    grad_distance_NL: torch.Tensor,
    features_BLC: torch.Tensor,
    mask_BL: torch.Tensor,
    anchor_N: torch.Tensor,
    target_N: torch.Tensor,
    beta: float,
    root_NL: torch.Tensor,
    similarity_NLL: torch.Tensor,
    gram_BLL: torch.Tensor,
    path: str,
) -> torch.Tensor:
    saved = (root_NL, similarity_NLL, gram_BLL)
    with torch.autocast(features_BLC.device.type, enabled=False):
        return _module(path).backward(grad_distance_NL, features_BLC, mask_BL, anchor_N, target_N, beta, *saved)


@_backward.register_fake
def _(grad_distance_NL, features_BLC, *saved):  # type: ignore[no-untyped-def]
    return torch.empty_like(features_BLC, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    features_BLC, mask_BL, anchor_N, target_N, ctx.beta, ctx.path = inputs
    ctx.save_for_backward(features_BLC, mask_BL, anchor_N, target_N, *output[1:])


def _differentiate(ctx, grad_distance_NL, *_):  # type: ignore[no-untyped-def]
    features_BLC, mask_BL, anchor_N, target_N, *saved = ctx.saved_tensors
    inputs = (features_BLC, mask_BL, anchor_N, target_N, ctx.beta)
    return _backward(grad_distance_NL, *inputs, *saved, ctx.path), None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
_backward.register_autograd(lambda ctx, *_: refuse_double_backward("align_distance"))
