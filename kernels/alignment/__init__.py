"""Soft cross-modal alignment: warp a target image onto an anchor image and measure the distance (method §4)."""

from kernels.alignment.mask import feature_mask
from kernels.alignment.op import align, align_distance, soft_align

__all__ = ["align", "align_distance", "feature_mask", "soft_align"]
