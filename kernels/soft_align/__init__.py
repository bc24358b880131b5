"""Soft cross-modal alignment: warp a target image onto an anchor image (method §4, eq. 1-6)."""

from kernels.common import feature_mask
from kernels.soft_align.op import soft_align

__all__ = ["feature_mask", "soft_align"]
