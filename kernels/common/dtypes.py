"""Which dtypes the operations accept, and the precision they compute in."""

import torch

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The precision of probabilities, norms and distances: float32, or float64 for float64, as gradcheck needs it."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
