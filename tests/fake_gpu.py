"""A GPU without values, and a record of what runs on it. PyTorch's meta device stands in for it.

A meta tensor has a shape and a dtype alone, so that whatever would make the host wait for a GPU's values raises an
error: `item`, a condition, `nonzero`, a copy to the host. `Operators` finds the copies in the other direction that the
host would wait for. `Timeline` is a GPU that computes nothing, but takes its time.
"""

import time
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("meta")
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Operators(TorchDispatchMode):
    """Collects the names of the operators that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.computing: list[str] = []  # all but views, which launch nothing on a GPU
        self.waiting: list[str] = []  # copies between devices that the host waits for, and reads of single values

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.computing.append(str(func))
        if func is torch.ops.aten._local_scalar_dense.default:
            self.waiting.append(str(func))
        if func in COPIES:
            source = args[0] if func is COPIES[0] else args[1]
            blocking = not ((kwargs or {}).get("non_blocking") or any(value is True for value in args))
            if blocking and source.device != found.device:
                self.waiting.append(f"{func} from {source.device} to {found.device}")
        return found


def without_pinning(monkeypatch: Any) -> None:
    """Memory is pinned for a GPU alone."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU, for what asks for nothing else."""

    device = torch.device("cuda", 0)


class Timeline:
    """The clock of a host, and a GPU that works off what the host launches, in seconds. No time passes by itself."""

    def __init__(self, monkeypatch: Any) -> None:
        self.now_s, self.free_s = 0.0, 0.0  # the host's time, and when the GPU will have done everything
        timeline = self

        class Event:
            """CUDA's event."""

            def __init__(self, enable_timing: bool = False) -> None:
                self.timed = enable_timing

            def record(self) -> None:
                self.at_s = max(timeline.now_s, timeline.free_s)

            def synchronize(self) -> None:
                timeline.now_s = max(timeline.now_s, self.at_s)

            def elapsed_time(self, end: "Event") -> float:
                assert self.timed
                assert end.timed
                assert max(self.at_s, end.at_s) <= timeline.now_s, "CUDA refuses to compare events that are to come"
                return 1000 * (end.at_s - self.at_s)

        empty = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **options: empty(*size, **options))
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 0)
        monkeypatch.setattr(time, "perf_counter", lambda: timeline.now_s)

    def launch(self, seconds: float) -> None:
        """Work for the GPU."""
        self.free_s = max(self.now_s, self.free_s) + seconds
