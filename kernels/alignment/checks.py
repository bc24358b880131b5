"""Checks of the alignment's arguments before any work, and the limits of its Triton kernels.

Legend: B images, L = H*W positions, C channels, N pairs.
"""

import torch
from torch._subclasses.fake_tensor import FakeTensor

from kernels.common.checks import check_positive, check_tensor

MAX_BLOCKS = 65_535  # of one dimension of a launch, as CUDA limits the second and the third
MAX_POSITIONS = 1024  # a row of scores this long still fits the registers of one program


def check_alignment(
    features_BLC: torch.Tensor, mask_BL: torch.Tensor, anchor_N: torch.Tensor, target_N: torch.Tensor, beta: float
) -> None:
    """Raise TypeError or ValueError for wrong shapes, dtypes, devices or beta.

    The values of the tensors are not read; `check_row_range` checks whether the pair rows are in the batch.
    """
    check_tensor("features_BLC", features_BLC, "B x L x C")
    check_tensor("mask_BL", mask_BL, "B x L", features_BLC.device)
    if mask_BL.shape != features_BLC.shape[:2]:
        expected = tuple(features_BLC.shape[:2])
        raise ValueError(
            f"mask_BL: expected shape {expected}, got {tuple(mask_BL.shape)}; use feature_mask(features_BLC)"
        )
    if 0 in features_BLC.shape:
        raise ValueError(f"features_BLC: expected no empty dimension, got {tuple(features_BLC.shape)}; pass images")
    for name, rows in (("anchor_N", anchor_N), ("target_N", target_N)):
        _check_rows(name, rows, features_BLC.device)
    if anchor_N.shape != target_N.shape:
        shapes = f"{tuple(anchor_N.shape)} and {tuple(target_N.shape)}"
        raise ValueError(f"anchor_N, target_N: expected equal lengths, got {shapes}; give every anchor one target")
    check_positive("beta", beta)


def _check_rows(name: str, rows: torch.Tensor, device: torch.device) -> None:
    if not isinstance(rows, torch.Tensor) or rows.dtype != torch.int64:
        raise TypeError(
            f"{name}: expected an int64 tensor, got {getattr(rows, 'dtype', type(rows).__name__)}; use .long()"
        )
    if rows.dim() != 1:
        raise ValueError(f"{name}: expected one dimension, got shape {tuple(rows.shape)}; flatten it")
    if rows.device != device:
        raise ValueError(f"{name}: expected device {device}, got {rows.device}; move all inputs to one device")


def check_row_range(anchor_N: torch.Tensor, target_N: torch.Tensor, images: int) -> None:
    """Raise ValueError unless the pair rows are in 0..images-1.

    Rows on a GPU are not checked, because reading them would stall the stream; the kernels return NaN for wrong ones.
    Fake tensors, by which the operations and the memory of a step are counted, have no values to check.
    """
    for name, rows in (("anchor_N", anchor_N), ("target_N", target_N)):
        if rows.device.type == "cpu" and rows.numel() and not isinstance(rows, FakeTensor):
            low, high = int(rows.min()), int(rows.max())
            if low < 0 or high >= images:
                raise ValueError(
                    f"{name}: expected rows in 0..{images - 1}, got {low}..{high}; pairs are rows of this rank's batch"
                )


def triton_obstacle(features_BLC: torch.Tensor, pairs: int) -> str:
    """The reason in words if the Triton kernels cannot process these maps or this many pairs; otherwise empty."""
    images, length, channels = features_BLC.shape
    if images + pairs > MAX_BLOCKS:
        return f"{images} images and {pairs} pairs (together up to {MAX_BLOCKS})"
    if length > MAX_POSITIONS:
        return f"L = {length} positions (up to {MAX_POSITIONS})"
    return f"C = {channels} channels (a multiple of 8)" if channels % 8 else ""
