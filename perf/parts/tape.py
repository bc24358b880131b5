"""Records operators and runs them again on the same memory: the capture and replay of the fake CUDA graph."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators that make the host wait for values of the device, which is not permitted during a capture.
WAITING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


class Tape(TorchDispatchMode):
    """Records the operators that run within the block. `end` undoes their effects, as if nothing had run.

    After `end`, tensors from outside have their old values, and new floating tensors are NaN until `play` computes
    them. Custom operators are recorded as a whole.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], list[torch.Tensor | None]]] = []
        self._own: set[int] = set()  # memory that was allocated inside
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}  # of memory from outside

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in WAITING:
            raise RuntimeError(f"{func}: operation not permitted when stream is capturing")
        read = _tensors((args, kwargs))
        for tensor in read:
            # Any of them: some operators, as batch norms, write where their schema does not say so.
            if _memory(tensor) not in self._own and _memory(tensor) not in self._before:
                storage = tensor.untyped_storage()
                self._before[_memory(tensor)] = storage, storage.clone()
        found = func(*args, **kwargs)
        shared = {_memory(tensor) for tensor in read}
        new = [tensor if _memory(tensor) not in shared else None for tensor in _tensors(found)]
        self._own |= {_memory(tensor) for tensor in new if tensor is not None}
        if not func.is_view:
            self._calls.append((func, args, kwargs, new))
        return found

    def end(self) -> None:
        """Undo all effects. Called after the block was left."""
        with torch.no_grad():
            for *_, new in self._calls:
                for tensor in new:
                    if tensor is not None and tensor.is_floating_point():
                        tensor.fill_(torch.nan)
            for storage, before in self._before.values():
                storage.copy_(before)

    def play(self) -> None:
        """Run everything again on the current contents of the tensors from outside."""
        with torch.no_grad():
            for func, args, kwargs, new in self._calls:
                for tensor, value in zip(new, _tensors(func(*args, **kwargs)), strict=True):
                    if tensor is not None:
                        tensor.copy_(value)
