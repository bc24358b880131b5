"""The foreground mask of an image, from its features alone (LbA; method §4).

Legend: B images, L = H*W positions, C channels, N pairs.
"""

import torch

from kernels.common.dtypes import compute_dtype

MINMAX_FLOOR = 1e-12  # LbA's guard in (x - min) / (max - min + floor)


def minmax(values_NL: torch.Tensor) -> torch.Tensor:
    """(x - min) / (max - min + 1e-12) over the last dimension; 0 for a constant row (LbA)."""
    low, high = values_NL.aminmax(dim=-1, keepdim=True)
    return (values_NL - low) / (high - low + MINMAX_FLOOR)


def feature_mask(features_BLC: torch.Tensor) -> torch.Tensor:
    """The parameter-free foreground mask: min-max of the feature norms over an image's positions (LbA; method §4).

    features_BLC: B x L x C, any floating dtype. Returns B x L in [0, 1], float32 (float64 for float64), detached.
    """
    norm_BL: torch.Tensor = torch.linalg.vector_norm(features_BLC.detach(), dim=-1, dtype=compute_dtype(features_BLC))
    return minmax(norm_BL)
