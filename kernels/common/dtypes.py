"""Which dtypes the operations accept, and the precision they compute in."""

import torch

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Probabilities, norms and distances are float32 for half inputs; float64 stays, so gradients can be checked."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
