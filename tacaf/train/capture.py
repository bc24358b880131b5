"""Capturing a CUDA graph such that the device stays usable if the capture fails; describing the failure in one line."""

import contextlib
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def captured(run: Callable[[], Result], stream: torch.cuda.Stream) -> tuple[torch.cuda.CUDAGraph, Result]:
    """A graph of the work that `run` launches, and its result: tensors without values until the graph is replayed.

    Raises the error of `run` or of the capture itself; the device stays usable.
    """
    graph, pool, before = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), torch.cuda.current_stream()
    cause: Exception | None = None
    try:
        # thread_local, because DALI's threads may allocate memory during the capture
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            try:
                result = run()
            except Exception as error:
                cause = error
                raise
    except Exception as error:
        _abandon(pool, before)
        if cause is not None and cause is not error:  # ending a broken capture fails too, with a less helpful error
            raise cause from None
        raise
    return graph, result


def _abandon(pool: Any, stream: torch.cuda.Stream) -> None:
    """Leave the stream of a failed capture, and stop the allocator from using its pool. PyTorch may do neither."""
    torch.cuda.set_stream(stream)
    with contextlib.suppress(Exception):  # the pool is closed already
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
    with contextlib.suppress(Exception):  # raises the capture's error again
        torch.cuda.synchronize()


def reason_of(error: BaseException) -> str:
    """One line: the type of the error, the first line of its message, and where it was raised."""
    message = (str(error).strip().splitlines() or ["no message"])[0][:200]
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return f"{type(error).__name__}: {message}"
    file = "/".join(Path(frames[-1].filename).parts[-2:])
    return f"{type(error).__name__}: {message} ({file}:{frames[-1].lineno}: {frames[-1].line})"
