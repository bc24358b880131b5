"""The capture of a CUDA graph that leaves the device usable where it fails, and the reason in one line."""

import contextlib
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def captured(run: Callable[[], Result], stream: torch.cuda.Stream) -> tuple[torch.cuda.CUDAGraph, Result]:
    """A graph of what `run` launches, and what it returns: tensors without values until the graph is replayed.

    Raises the error of `run`, or that of the capture itself; the device can be used afterwards.
    """
    graph, pool, before = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), torch.cuda.current_stream()
    cause: Exception | None = None
    try:
        # thread_local: DALI's threads may allocate memory meanwhile
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            try:
                result = run()
            except Exception as error:
                cause = error
                raise
    except Exception as error:
        _abandon(pool, before)
        if cause is not None and cause is not error:  # the end of a broken capture fails as well, and says less
            raise cause from None
        raise
    return graph, result


def _abandon(pool: Any, stream: torch.cuda.Stream) -> None:
    """After a failed capture: leave its stream, and let the allocator stop filling its pool. PyTorch may do neither."""
    torch.cuda.set_stream(stream)
    with contextlib.suppress(Exception):  # the pool is closed already
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
    with contextlib.suppress(Exception):  # reports the capture's error once more
        torch.cuda.synchronize()


def reason_of(error: BaseException) -> str:
    """One line: the kind of the error, what it says first, and where it was raised."""
    said = (str(error).strip().splitlines() or ["no message"])[0][:200]
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return f"{type(error).__name__}: {said}"
    file = "/".join(Path(frames[-1].filename).parts[-2:])
    return f"{type(error).__name__}: {said} ({file}:{frames[-1].lineno}: {frames[-1].line})"
