"""Communication between ranks: rank and world size, differentiable sums and gathers, and exchange of small values.

With one process (or before the process group exists) every function is the identity. Gathers are differentiable so that
batch-hard mining sees the global batch; DeepSpeed and DDP average parameter gradients over ranks, and the backward of
the gather sums over ranks, so a loss computed over the gathered batch on every rank has exactly the gradient of one
process with the full batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from tacaf.files import reason_of, shown
from tacaf.vocabulary import InputError

# The group that `numbers_of_ranks` uses. PyTorch keeps its default group in the same way: one per process, from
# `train.processes.start_distributed` to `stop_distributed`.
_control_group: dist.ProcessGroup | None = None


def open_control_group(limit: timedelta) -> None:
    """Create the group of `numbers_of_ranks`, whose calls fail after `limit`. Collective: every rank must call it."""
    global _control_group
    _control_group = dist.new_group(backend="gloo", timeout=limit)


def close_groups() -> None:
    """Leave every group of ranks that this process is in."""
    global _control_group
    _control_group = None
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


class _Sum(torch.autograd.Function):
    """The sum over ranks, forward and backward. (PyTorch's own differentiable collectives are deprecated.)"""

    @staticmethod
    def forward(_: Any, tensor: torch.Tensor) -> torch.Tensor:
        return _summed(tensor)

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
        return _summed(gradient)


class _Gather(torch.autograd.Function):
    """All ranks' rows. The backward sums the gradients over ranks and returns this rank's rows."""

    @staticmethod
    def forward(ctx: Any, tensor_B: torch.Tensor) -> torch.Tensor:
        ctx.rows = len(tensor_B)
        return _gathered(tensor_B)

    @staticmethod
    def backward(ctx: Any, gradient_G: torch.Tensor) -> torch.Tensor:
        first = rank() * ctx.rows
        return _summed(gradient_G)[first : first + ctx.rows]


def _summed(tensor: torch.Tensor) -> torch.Tensor:
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def _gathered(tensor_B: torch.Tensor) -> torch.Tensor:
    parts = [torch.empty_like(tensor_B, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, tensor_B.detach().contiguous())
    return torch.cat(parts)


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of `tensor` over all ranks, any shape; the gradient is summed over ranks too."""
    return _Sum.apply(tensor) if world_size() > 1 else tensor


def max_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The largest of all ranks' values, any shape, without gradient."""
    largest = tensor.detach().clone(memory_format=torch.contiguous_format)
    if world_size() > 1:
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest


def gather_rows(tensor_B: torch.Tensor) -> torch.Tensor:
    """All ranks' rows, in rank order, along dimension 0: B x ... to (ranks * B) x ... B must be equal on every rank.

    Floating-point tensors carry gradients back to the rank they came from.
    """
    if world_size() == 1:
        return tensor_B
    return _Gather.apply(tensor_B) if tensor_B.requires_grad else _gathered(tensor_B)


def gather_objects(value: object) -> list[Any]:
    """One picklable object from every rank, in rank order, on every rank. Meant for small values of our own."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def any_rank(flag: bool) -> bool:
    """True on every rank if it is true on one: how ranks agree to stop together."""
    return any(row[0] for row in numbers_of_ranks([float(flag)]))


def numbers_of_ranks(numbers: list[float]) -> list[list[float]]:
    """Every rank's numbers, in rank order, on every rank. Every rank must pass equally many.

    Uses a separate group on the CPU, so that a call at every step never waits for a GPU.
    """
    if world_size() == 1:
        return [numbers]
    assert _control_group is not None, "start_distributed makes it"
    parts = [torch.empty(len(numbers), dtype=torch.float64) for _ in range(world_size())]
    dist.all_gather(parts, torch.tensor(numbers, dtype=torch.float64), group=_control_group)
    return [part.tolist() for part in parts]


@contextmanager
def together() -> Iterator[None]:
    """If any rank raises InputError inside the block, every rank raises the first one, marked as shared.

    An OSError of one rank counts too, so that the others do not wait for it. Every rank must enter and leave the block,
    because leaving it is a collective operation.
    """
    own: str | None = None
    try:
        yield
    except InputError as error:
        own = str(error)
    except OSError as error:
        own = f"{shown(error.filename)}: {reason_of(error)}" if error.filename else reason_of(error)
    first = next((text for text in gather_objects(own) if text is not None), None)
    if first is not None:
        raise InputError(first, shared=True)


def average_batchnorm_statistics(module: torch.nn.Module) -> None:
    """Replace every running mean and variance by its mean over ranks, in place.

    DeepSpeed never synchronises buffers and saves only rank 0's, so this runs before every evaluation and every save.
    The mean of variances is not the variance of the union. With synchronised norms the ranks already agree, and this
    changes nothing.
    """
    if world_size() == 1:
        return
    for name, buffer in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            dist.all_reduce(buffer)
            buffer.div_(world_size())
