"""Measures time and memory of a call: on a GPU by events and from a CUDA graph, on a CPU by the clock."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import torch

from perf.parts.cases import Tensors
from perf.parts.passes import Work, passes

MIB = 2**20
SIZES = {"cuda": (2**29, 8192), "cpu": (2**28, 2048), "rehearsal": (2**16, 64)}  # bytes copied, rows of a product


def quantiles(times_ms: list[float]) -> tuple[float, float, float]:
    """The 20th, 50th and 80th percentile."""
    ordered = sorted(times_ms)
    p20, p50, p80 = (ordered[round(q * (len(ordered) - 1))] for q in (0.2, 0.5, 0.8))
    return p20, p50, p80


def time_ms(run: Callable[[], Any], device: str, seconds: float) -> list[float]:
    """Times of single calls, made for about `seconds`: on a GPU by events, with L2 flushed; on a CPU at least five."""
    if device == "cuda":
        from triton.testing import do_bench

        return do_bench(run, warmup=int(250 * seconds), rep=int(1000 * seconds), return_mode="all")
    run()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return times


def ceilings(size: str, dtype: torch.dtype) -> dict[str, float]:
    """Measures bytes per second of a copy (reads and writes), and FLOPs per second of a square matrix product."""
    device = "cpu" if size == "cpu" else "cuda"
    copied, side = SIZES[size]
    source = torch.empty(copied, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = 0.001 if size == "rehearsal" else 1.0
    copy_ms = min(time_ms(lambda: target.copy_(source), device, seconds))
    product_ms = min(time_ms(lambda: left @ right, device, seconds))
    return {"copy_bytes_per_s": 2 * copied / copy_ms * 1000, "matrix_flops_per_s": 2 * side**3 / product_ms * 1000}


def graph_ms(function: Callable[..., Any], work: Work, name: str, seconds: float) -> tuple[float | None, str | None]:
    """The median milliseconds of a pass replayed from a CUDA graph, or None with the reason for a failed capture."""
    try:
        graph = _captured(function, work, name)
        median = quantiles(time_ms(graph.replay, "cuda", seconds))[1]
        graph.reset()
    except Exception as error:  # compiled code may synchronise, an op may allocate; other figures are not affected
        # the error of a failing end of the capture hides its cause
        return None, reason(error.__context__ or error)
    return median, None


def _captured(function: Callable[..., Any], work: Work, name: str) -> torch.cuda.CUDAGraph:
    """A graph of one pass.

    Autograd runs a backward on the stream of its forward, and waits for the stream on which the leaves were first
    used. So the leaves, the forward and the warm-up all belong to the stream of the capture; the default stream may
    not take part in a capture.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        leaves = tuple(leaf.detach().requires_grad_() for leaf in work.leaves)
        run = passes(function, work._replace(leaves=leaves))[name]
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph, pool, before = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, pool=pool, stream=side):
            run()
    except Exception:
        abandon(pool, before)
        raise
    return graph


def abandon(pool: Any, stream: torch.cuda.Stream) -> None:
    """After a failed capture, leave its stream and stop the allocator from using its pool.

    If the end of a capture fails, PyTorch does neither, and the next allocations would be made in the dead pool.
    """
    torch.cuda.set_stream(stream)
    with contextlib.suppress(Exception):  # the end did not fail, so the pool is closed
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
    with contextlib.suppress(Exception):  # may report the capture's error again
        torch.cuda.synchronize()


def reason(error: BaseException) -> str:
    """The kind of the error and the first line of its message, in one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"[:300]


def saved_mib(function: Callable[..., Any], work: Work) -> float:
    """MiB that autograd keeps for backward: each storage once, without the inputs."""
    kept: dict[int, int] = {}
    inputs: Tensors = (*work.leaves, *work.constants)
    own = {tensor.untyped_storage().data_ptr() for tensor in inputs}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function(*inputs)
    del result
    return sum(kept.values()) / MIB


def peak_mib(run: Callable[[], Any]) -> float:
    """The peak in MiB that a call adds to the GPU memory allocated before it."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB
