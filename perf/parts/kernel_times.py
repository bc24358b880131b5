"""Names, counts and times of the kernels that a call launches, from torch.profiler."""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, supported_activities

CALLS = 5


def kernel_times(run: Callable[[], Any], device: str) -> list[dict[str, Any]]:
    """A row for every kernel of one call, the longest first: name, launches and total microseconds of a call.

    On a GPU the kernels are the device's. On a CPU, and in a rehearsal, they are PyTorch's operators.
    """
    on_gpu = device == "cuda" and ProfilerActivity.CUDA in supported_activities()
    for _ in range(2):
        run()
    _wait(device)
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU], acc_events=True) as recorded:
        for _ in range(CALLS):
            run()
        _wait(device)
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    found = [
        {
            "kernel": event.key,
            "device": "gpu" if on_gpu else "cpu",
            "count": event.count / CALLS,
            "us": (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / CALLS,
        }
        for event in recorded.key_averages()
        if event.device_type == kind
    ]
    return sorted(found, key=lambda row: -row["us"])


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
