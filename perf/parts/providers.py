"""The functions that the kernel benchmark times, by name: our op and its rivals."""

from collections.abc import Callable
from typing import Any

import torch

from perf.parts.cases import Case

# In the order in which they are timed: those that compile for minutes come last, so that a stop loses the least.
PROVIDERS = ("eager", "ours", "cublas", "sdpa", "compiled", "autotuned")
SLOW = ("autotuned",)  # only where it is asked for


def provider_names(case: Case, device: str, wanted: tuple[str, ...] | None, autotuned: bool) -> list[str]:
    """The providers to time for this case. On a CPU, rivals made for a GPU are timed only if `wanted` names them."""
    usual = PROVIDERS[:2] if device == "cpu" else tuple(name for name in PROVIDERS if name not in SLOW)
    chosen = {*(wanted or usual), *(SLOW if autotuned else ())}
    missing = {name for name in ("cublas", "sdpa") if getattr(case, name) is None}
    return [name for name in PROVIDERS if name in chosen - missing]


def provider(case: Case, name: str) -> Callable[..., Any]:
    """The function to time.

    Cases of one op share their code, so torch.compile would treat the shape of a second case as dynamic and give the
    rival a slower kernel. A reset of the compiler, without dynamic shapes, compiles for the case's shape only.
    """
    if name in ("compiled", "autotuned"):
        torch._dynamo.reset()
        mode = "max-autotune-no-cudagraphs" if name == "autotuned" else None
        return torch.compile(case.eager, dynamic=False, mode=mode)
    if name == "sdpa":
        assert case.sdpa is not None
        return fused_only(case.sdpa)
    return getattr(case, name)


def fused_only(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with PyTorch's unfused attention switched off, so that it fails instead of falling back to it."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def call(*tensors: torch.Tensor) -> Any:
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]):
            return function(*tensors)

    return call
