"""The choice of the implementation that an operation runs: the definition, plain PyTorch for a CPU, or Triton."""

import os
from typing import Literal, get_args

import torch

Backend = Literal["auto", "reference", "triton"]  # what a caller can choose
Path = Literal["reference", "plain", "triton"]  # the implementation that runs


def choose_path(backend: Backend, tensor: torch.Tensor, obstacle: str = "") -> Path:
    """Return `reference` (the definition, on any device), `plain` (the same algebra, faster on a CPU) or `triton`.

    `auto` runs Triton on a GPU and `plain` on a CPU. It runs the definition on a GPU where the kernel cannot be used
    (`obstacle` gives the reason in words), and while a graph is exported, because other runtimes know only PyTorch's
    own operators. Raises ValueError for an unknown backend, and if Triton is requested but cannot run.
    """
    if backend not in get_args(Backend):
        raise ValueError(
            f"backend: expected one of {', '.join(get_args(Backend))}, got {backend!r}; choose one of them"
        )
    if tensor.dtype == torch.float64:
        obstacle = obstacle or "float64"
    # Not `is_exporting()`: Dynamo took it for true in every compiled function, exported or not, at least in torch 2.11.
    if backend == "auto" and torch.compiler._is_exporting_flag:
        return "reference"
    if backend == "auto":
        return "plain" if tensor.device.type == "cpu" else "reference" if obstacle else "triton"
    if backend == "triton" and obstacle:
        raise ValueError(f'backend: expected inputs that the Triton kernel supports, got {obstacle}; use "reference"')
    if backend == "triton" and tensor.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            'backend: expected tensors on a GPU for "triton", got CPU; use "auto", or set TRITON_INTERPRET=1'
        )
    return backend
