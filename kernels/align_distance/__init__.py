"""The distance between an anchor image and its reconstruction out of a target, without writing it (method §4.1)."""

from kernels.align_distance.op import align_distance

__all__ = ["align_distance"]
