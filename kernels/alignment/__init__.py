"""Soft cross-modal alignment: warp a target image onto an anchor image and measure the distance (method §4)."""

from kernels.alignment.op import align, align_distance, soft_align
from kernels.common import feature_mask

__all__ = ["align", "align_distance", "feature_mask", "soft_align"]
