"""Times on a GPU by events, for the parts of the suite that measure the machine and not an op."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def median_ms(run: Callable[[], Any], seconds: float = 0.3, least: int = 5) -> float:
    """The median time of one call on the GPU, after three to warm up; at least `least` calls are timed."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    times, began = list[float](), time.perf_counter()
    while len(times) < least or time.perf_counter() - began < seconds:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)
