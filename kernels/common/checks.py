"""Checks that every operation makes before any work.

A shape is written as its dimensions by name: "B x L x C".
"""

from numbers import Real
from typing import NoReturn

import torch

from kernels.common.dtypes import FLOATS

SMALLEST, LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max  # normal numbers of float32


def check_tensor(name: str, tensor: torch.Tensor, shape: str, device: torch.device | None = None) -> None:
    """Raise TypeError or ValueError unless this is a floating tensor with the dimensions of `shape`, on `device`."""
    rank = len(shape.split(" x "))
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor {shape}, got {type(tensor).__name__}; pass a torch.Tensor")
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64, got {tensor.dtype}; convert it")
    if tensor.dim() != rank:
        raise ValueError(f"{name}: expected {shape}, got shape {tuple(tensor.shape)}; reshape it to {rank} dimensions")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name}: expected device {device}, got {tensor.device}; move all inputs to one device")


def check_positive(name: str, value: float) -> None:
    """Raise TypeError unless this is a number, and ValueError unless it is positive and neither 0 nor inf in float32.

    A tensor of one number is refused, because reading it from a GPU would stall the stream.
    """
    if isinstance(value, bool) or not isinstance(value, (float, Real)):  # the first is checked much faster
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}; pass a float")
    if not SMALLEST <= value <= LARGEST:
        raise ValueError(f"{name}: expected a number from {SMALLEST:.1e} to {LARGEST:.1e}, got {value}; choose another")


def refuse_double_backward(op: str) -> NoReturn:
    """Raise RuntimeError; registered as the backward of every operation's backward."""
    raise RuntimeError(
        f"kernels.{op}: expected a first derivative, got a second one (create_graph=True or a Hessian); "
        f'use backend="reference", which can be differentiated any number of times'
    )
