"""A GPU without values, and a record of what runs on it. PyTorch's meta device stands in for it.

A meta tensor has a shape and a dtype alone, so that whatever would make the host wait for a GPU's values raises an
error: `item`, a condition, `nonzero`, a copy to the host. `Operators` finds the copies in the other direction that the
host would wait for.
"""

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
