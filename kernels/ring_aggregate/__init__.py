"""Cyclic neighbour aggregation over the ring of fine parts, all rounds at once (paper §3; method §5.2)."""

from kernels.ring_aggregate.op import ring_aggregate

__all__ = ["ring_aggregate"]
