"""The Triton path of the alignment: which tile sizes a call uses, and its forward and backward with them."""

import functools

import torch

from kernels.alignment import backward_kernel, forward_kernel
from kernels.alignment.tile_kernel import Choice, Tile, precision
from kernels.common.sizes import ceil_div

# Half types on Hopper and later, whose asynchronous products leave registers for whole pairs: measured on an H200
# (perf/tune_alignment.py, perf/results/gpu/tune_alignment.json). The first is the default.
CHOICES = (
    Choice(
        rows=192,
        scores=Tile(0, 64, 8, 3),
        warp=Tile(64, 64, 8, 3, 2),  # one part where `one_program_suffices`
        quadratic=Tile(64, 64, 4, 2),
        softmax=Tile(8, 0, 2, 1),
        gram=Tile(64, 64, 4, 3),
        gradient=Tile(128, 64, 8, 4),
    ),
)
# Half types before Hopper: smaller tiles, which fit the registers of one block. They are compiled, but not measured.
AMPERE = Choice(
    rows=64,
    scores=Tile(0, 64, 4, 3),
    warp=Tile(64, 64, 4, 3),
    quadratic=Tile(64, 32, 4, 2),
    softmax=Tile(8, 0, 2, 1),
    gram=Tile(64, 32, 4, 3),
    gradient=Tile(64, 32, 4, 3),
)
# float32 elements take twice the space. TF32 is the choice for TF32 products, EXACT for exact ones, which tensor cores
# do not compute.
TF32 = Choice(
    rows=64,
    scores=Tile(0, 32, 4, 2),
    warp=Tile(64, 32, 4, 2),
    quadratic=Tile(32, 16, 4, 2),
    softmax=Tile(8, 0, 2, 1),
    gram=Tile(64, 32, 4, 2),
    gradient=Tile(64, 32, 4, 2),
)
EXACT = Choice(
    rows=32,
    scores=Tile(0, 16, 4, 3),
    warp=Tile(32, 16, 4, 3),
    quadratic=Tile(32, 16, 4, 3),
    softmax=Tile(8, 0, 2, 1),
    gram=Tile(32, 16, 4, 3),
    gradient=Tile(32, 16, 4, 3),
)


def choices(dtype: torch.dtype, capability: int = 9) -> tuple[Choice, ...]:
    """The tuning choices for a dtype on a GPU of this compute capability (the major number); the first is used."""
    if dtype == torch.float32:
        return (EXACT,) if precision(dtype) == "ieee" else (TF32,)
    return CHOICES if capability >= 9 else (AMPERE,)


@functools.cache
def _capability(device: torch.device) -> int:
    """The GPU's major compute capability; 9 for tensors of Triton's interpreter or of a compilation without a GPU."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 9


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    """How many the GPU has; those of an H100 for tensors of Triton's interpreter or of a compilation without a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def _choice(features_BLC: torch.Tensor, pairs: int) -> Choice:
    choice = choices(features_BLC.dtype, _capability(features_BLC.device))[0]
    parts = choice.warp.parts
    if parts > 1 and one_program_suffices(pairs, parts, _multiprocessors(features_BLC.device)):
        return choice._replace(warp=choice.warp._replace(parts=1))
    return choice


@functools.cache
def one_program_suffices(pairs: int, parts: int, multiprocessors: int) -> bool:
    """Whether the warp kernel takes no longer with one program per pair than with `parts` that share its channels.

    A multiprocessor holds one program at a time. One for a pair loads its weights once, and can finish the pair.
    """
    return ceil_div(pairs, multiprocessors) * parts <= ceil_div(pairs * parts, multiprocessors)


def forward(
    features_BLC: torch.Tensor, mask_BL: torch.Tensor, anchor_N: torch.Tensor, positive_N: torch.Tensor,
    negative_N: torch.Tensor, beta: float, choice: Choice | None = None,
) -> forward_kernel.Aligned:  # fmt: skip
    """As `forward_kernel.forward`, with the tile sizes for this dtype and GPU unless others are given."""
    choice = choice or _choice(features_BLC, len(positive_N) + len(negative_N))
    return forward_kernel.forward(features_BLC, mask_BL, anchor_N, positive_N, negative_N, beta, choice)


def backward(
    grad_reconstruction_NLC: torch.Tensor, grad_positive_NL: torch.Tensor, grad_negative_NL: torch.Tensor,
    features_BLC: torch.Tensor, mask_BL: torch.Tensor, anchor_N: torch.Tensor, positive_N: torch.Tensor,
    negative_N: torch.Tensor, beta: float, reconstruction_NLC: torch.Tensor, root_NL: torch.Tensor,
    similarity_NLP: torch.Tensor, weight_NLP: torch.Tensor, sums_RL: torch.Tensor, choice: Choice | None = None,
) -> torch.Tensor:  # fmt: skip
    """As `backward_kernel.backward`; the reconstruction is not read."""
    return backward_kernel.backward(
        grad_reconstruction_NLC, grad_positive_NL, grad_negative_NL, features_BLC, mask_BL, anchor_N, positive_N,
        negative_N, beta, root_NL, similarity_NLP, weight_NLP, sums_RL,
        choice or _choice(features_BLC, len(positive_N) + len(negative_N)),
    )  # fmt: skip
