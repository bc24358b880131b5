"""Generalised-mean pooling of all part levels and of the whole map in one read (method §5.1)."""

from kernels.gem_pyramid.op import gem_pyramid

__all__ = ["gem_pyramid"]
