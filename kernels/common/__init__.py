"""What the ops share: the constants of the definition, the precision they compute in, and the checks before any work.

Legend: B images, L = H*W positions, C channels, N pairs, R parts, D node width, A projection width.
"""

import os

import torch

NORM_FLOOR = (
    1e-12  # norms are clamped here (LbA); a shorter vector has no direction, so none flows back through it (ours)
)
DISTANCE_FLOOR = 1e-12  # the squared distance is at least this times the anchor's squared norm (ours, method §4.1)
MINMAX_FLOOR = 1e-12  # LbA's guard in (x - min) / (max - min + floor)

MAX_POSITIONS = 1024  # a row of scores this long still fits the registers of one program
# Below |f - w| = .1 |f| the CPU's Gram form of the distance has lost two of float32's seven digits in the square.
CANCELS = 0.01

BACKENDS = ("auto", "reference", "triton")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Probabilities, norms and distances are float32 for half inputs; float64 stays, so gradients can be checked."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def minmax(values_NL: torch.Tensor) -> torch.Tensor:
    """(x - min) / (max - min + 1e-12) over the last dimension; 0 for a constant row (LbA)."""
    low = values_NL.amin(-1, keepdim=True)
    return (values_NL - low) / (values_NL.amax(-1, keepdim=True) - low + MINMAX_FLOOR)


def feature_mask(features_BLC: torch.Tensor) -> torch.Tensor:
    """The parameter-free foreground mask: min-max of the feature norms over an image's positions (LbA; method §4).

    features_BLC: B x L x C, any floating dtype. Returns B x L in [0, 1], float32 (float64 for float64), detached.
    """
    dtype = compute_dtype(features_BLC)
    return minmax(torch.linalg.vector_norm(features_BLC.detach(), dim=-1, dtype=dtype))


def norms(features_BLC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Norms B x L and their inverses; the inverse is 0 for a vector too short to have a direction."""
    norm = torch.linalg.vector_norm(features_BLC, dim=-1)
    return norm, torch.where(norm > NORM_FLOOR, norm.reciprocal(), 0.0)


def distance_floor(norm_NL: torch.Tensor) -> torch.Tensor:
    """The least |f - w| that counts: 1e-6 of the anchor's norm. Below it the distance is this, with zero gradient."""
    return DISTANCE_FLOOR**0.5 * norm_NL.clamp_min(NORM_FLOOR)


def similarity_backward(
    probability_LL: torch.Tensor, grad_probability_LL: torch.Tensor, similarity_LL: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Through P = softmax(beta S) and S = <f_a/|f_a|, f_k/|f_k|>, for one pair.

    Returns dS (L x L) and the sums over s and over p of dS * S, the part of the gradient that lies along f_a and f_k
    and that normalising takes out.
    """
    grad = grad_probability_LL.sub_((probability_LL * grad_probability_LL).sum(-1, keepdim=True))
    grad.mul_(probability_LL).mul_(beta)
    along = grad * similarity_LL
    return grad, along.sum(1), along.sum(0)


def check_tensor(name: str, tensor: torch.Tensor, shape: str, device: torch.device | None = None) -> None:
    """A floating tensor with as many dimensions as `shape` names ("B x L x C"), on `device`."""
    rank = len(shape.split(" x "))
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor {shape}, got {type(tensor).__name__}; pass a torch.Tensor")
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64, got {tensor.dtype}; convert it")
    if tensor.dim() != rank:
        raise ValueError(f"{name}: expected {shape}, got shape {tuple(tensor.shape)}; reshape it to {rank} dimensions")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name}: expected device {device}, got {tensor.device}; move all inputs to one device")


def check_positive(name: str, value: float) -> None:
    if not value > 0 or value == float("inf"):
        raise ValueError(f"{name}: expected a finite number > 0, got {value}; choose a positive one")


def choose_path(backend: str, tensor: torch.Tensor, obstacle: str = "") -> str:
    """`reference` (the definition, anywhere), `plain` (the same algebra, faster on a CPU) or `triton`.

    `auto` takes Triton on a GPU; the definition there if an `obstacle` (words for what the kernel cannot do) stands,
    and while a graph is exported, for others read only PyTorch's operators.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}; choose one of these")
    if tensor.dtype == torch.float64:
        obstacle = obstacle or "float64"
    if backend == "auto" and torch.compiler.is_exporting():
        return "reference"
    if backend == "auto":
        return "plain" if tensor.device.type == "cpu" else "reference" if obstacle else "triton"
    if backend == "triton" and obstacle:
        raise ValueError(f'backend: expected a case the Triton kernel holds, got {obstacle}; use backend="reference"')
    if backend == "triton" and tensor.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            'backend: expected tensors on a GPU for "triton", got CPU; use "auto", or set TRITON_INTERPRET=1'
        )
    return backend


def check_alignment(
    features_BLC: torch.Tensor, mask_BL: torch.Tensor, anchor_N: torch.Tensor, target_N: torch.Tensor, beta: float
) -> None:
    """The inputs of the alignment, before any work.

    Only the range of the pair rows is left to `check_row_range`, which looks at their values.
    """
    check_tensor("features_BLC", features_BLC, "B x L x C")
    check_tensor("mask_BL", mask_BL, "B x L", features_BLC.device)
    if mask_BL.shape != features_BLC.shape[:2]:
        expected = tuple(features_BLC.shape[:2])
        raise ValueError(
            f"mask_BL: expected shape {expected}, got {tuple(mask_BL.shape)}; use feature_mask(features_BLC)"
        )
    if 0 in features_BLC.shape:
        raise ValueError(f"features_BLC: expected no empty dimension, got {tuple(features_BLC.shape)}; pass images")
    for name, rows in (("anchor_N", anchor_N), ("target_N", target_N)):
        _check_rows(name, rows, features_BLC)
    if anchor_N.shape != target_N.shape:
        shapes = f"{tuple(anchor_N.shape)} and {tuple(target_N.shape)}"
        raise ValueError(f"anchor_N, target_N: expected one length, got {shapes}; give every anchor one target")
    check_positive("beta", beta)


def alignment_obstacle(features_BLC: torch.Tensor) -> str:
    """What about these maps the Triton kernels do not hold; empty if they do."""
    _, length, channels = features_BLC.shape
    if length > MAX_POSITIONS:
        return f"L = {length} positions (up to {MAX_POSITIONS})"
    return f"C = {channels} channels (a multiple of 8)" if channels % 8 else ""


def _check_rows(name: str, rows: torch.Tensor, features_BLC: torch.Tensor) -> None:
    if not isinstance(rows, torch.Tensor) or rows.dtype != torch.int64:
        raise TypeError(
            f"{name}: expected an int64 tensor, got {getattr(rows, 'dtype', type(rows).__name__)}; use .long()"
        )
    if rows.dim() != 1:
        raise ValueError(f"{name}: expected N rows, got shape {tuple(rows.shape)}; flatten it")
    if rows.device != features_BLC.device:
        raise ValueError(
            f"{name}: expected device {features_BLC.device}, got {rows.device}; move all inputs to one device"
        )


def check_row_range(anchor_N: torch.Tensor, target_N: torch.Tensor, images: int) -> None:
    """Pair rows on the CPU lie in 0..images-1. Reading them on a GPU would stall the stream; kernels give NaN there."""
    for name, rows in (("anchor_N", anchor_N), ("target_N", target_N)):
        if rows.device.type == "cpu" and rows.numel():
            low, high = int(rows.min()), int(rows.max())
            if low < 0 or high >= images:
                raise ValueError(
                    f"{name}: expected rows in 0..{images - 1}, got {low}..{high}; pairs are rows of this rank's batch"
                )


def refuse_double_backward(op: str) -> None:
    raise RuntimeError(
        f"kernels.{op}: expected one backward, got a backward through the backward (create_graph=True or a Hessian); "
        f'use backend="reference", which is differentiable any number of times'
    )
