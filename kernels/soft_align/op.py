"""The public `soft_align`: checks, choice of path, and the custom op with its fake and its backward.

Legend: B images, L = H*W positions, C channels, N pairs.
"""

from types import ModuleType

import torch

from kernels.common import (
    alignment_obstacle,
    check_alignment,
    check_row_range,
    choose_path,
    compute_dtype,
    refuse_double_backward,
)
from kernels.soft_align import plain, reference


def soft_align(
    features_BLC: torch.Tensor,
    mask_BL: torch.Tensor,
    anchor_N: torch.Tensor,
    target_N: torch.Tensor,
    beta: float,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rebuild each anchor image from its target's features (paper §4; LbA's CMAlign; method §4, eq. 1-6).

    features_BLC: B x L x C, channels-last maps flattened, any floating dtype; mask_BL: B x L in [0, 1], carries no
    gradient (`feature_mask`); anchor_N, target_N: int64 rows of the batch; beta > 0 multiplies the cosine similarity.
    Returns reconstruction N x L x C (dtype of the features), distance N x L = |f - reconstruction| over channels and
    co-mask N x L, both float32 (float64 for float64); the co-mask carries no gradient. N may be 0.
    backend: `auto`, `reference` (the definition) or `triton`.
    Raises TypeError or ValueError before any work. On a GPU a pair with a row outside the batch gives NaN instead:
    reading the rows to check them would stall the stream.
    """
    check_alignment(features_BLC, mask_BL, anchor_N, target_N, beta)
    path = choose_path(backend, features_BLC, alignment_obstacle(features_BLC))
    if path == "reference":
        check_row_range(anchor_N, target_N, len(features_BLC))
        return reference.soft_align(features_BLC, mask_BL, anchor_N, target_N, beta)
    outputs = _forward(features_BLC, mask_BL.detach(), anchor_N, target_N, float(beta), path)
    return outputs[0], outputs[1], outputs[2].detach()


def _module(path: str) -> ModuleType:
    if path == "plain":
        return plain
    from kernels.soft_align import kernel  # here, because it imports Triton

    return kernel


@torch.library.custom_op("kernels::soft_align", mutates_args=())
def _forward(
    features_BLC: torch.Tensor,
    mask_BL: torch.Tensor,
    anchor_N: torch.Tensor,
    target_N: torch.Tensor,
    beta: float,
    path: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    pairs, (_, length, channels) = len(anchor_N), features_BLC.shape
    dtype = compute_dtype(features_BLC)
    distance, comask, root = (features_BLC.new_empty(pairs, length, dtype=dtype) for _ in range(3))
    similarity = features_BLC.new_empty(pairs, length, length, dtype=dtype)
    return features_BLC.new_empty(pairs, length, channels), distance, comask, root, similarity


@torch.library.custom_op("kernels::soft_align_backward", mutates_args=())
def _backward(
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
    path: str,
) -> torch.Tensor:
    saved = (reconstruction_NLC, root_NL, similarity_NLL)
    with torch.autocast(features_BLC.device.type, enabled=False):
        return _module(path).backward(
            grad_reconstruction_NLC, grad_distance_NL, features_BLC, mask_BL, anchor_N, target_N, beta, *saved
        )


@_backward.register_fake
def _(grad_reconstruction_NLC, grad_distance_NL, features_BLC, *saved):  # type: ignore[no-untyped-def]
    return torch.empty_like(features_BLC, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    features_BLC, mask_BL, anchor_N, target_N, ctx.beta, ctx.path = inputs
    reconstruction_NLC, _, _, root_NL, similarity_NLL = output
    ctx.save_for_backward(features_BLC, mask_BL, anchor_N, target_N, reconstruction_NLC, root_NL, similarity_NLL)


def _differentiate(ctx, grad_reconstruction_NLC, grad_distance_NL, *_):  # type: ignore[no-untyped-def]
    features_BLC, mask_BL, anchor_N, target_N, *saved = ctx.saved_tensors
    inputs = (features_BLC, mask_BL, anchor_N, target_N, ctx.beta)
    return _backward(grad_reconstruction_NLC, grad_distance_NL, *inputs, *saved, ctx.path), None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
_backward.register_autograd(lambda ctx, *_: refuse_double_backward("soft_align"))
