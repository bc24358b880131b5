"""Counts the bytes that collective calls between ranks move."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Bytes into each of R ranks, in shares of the largest tensor list of the call, by the usual ring algorithms.
_SHARES: dict[str, Callable[[int], float]] = {
    "allreduce_": lambda ranks: 2 * (ranks - 1) / ranks,
    "allgather_": lambda ranks: (ranks - 1) / ranks,
    "_allgather_base_": lambda ranks: (ranks - 1) / ranks,
    "allgather_into_tensor_coalesced_": lambda ranks: (ranks - 1) / ranks,
    "reduce_scatter_": lambda ranks: (ranks - 1) / ranks,
    "_reduce_scatter_base_": lambda ranks: (ranks - 1) / ranks,
    "broadcast_": lambda ranks: 1.0,
    "reduce_": lambda ranks: 1.0,
}


class Traffic(TorchDispatchMode):
    """Counts, within the block, the bytes into one rank by the name of the call (`bytes_by_call`), moved by a ring.

    Counts the calls of this thread. A collective call of an unknown kind is an error.
    """

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.ranks = ranks
        self.bytes_by_call: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d" and func.overloadpacket.__name__ not in ("barrier", "monitored_barrier_"):
            name = func.overloadpacket.__name__
            largest = max(sum(_nbytes(leaf) for leaf in tree_leaves(arg)) for arg in args)
            self.bytes_by_call[name] += round(_SHARES[name](self.ranks) * largest)
        return func(*args, **(kwargs or {}))


def _nbytes(value: Any) -> int:
    return value.nbytes if isinstance(value, torch.Tensor) else 0
