"""Talking between ranks: who am I, sums and gathers that carry gradients, and agreement on a flag.

With one process (or before the process group exists) everything is the identity. Gathers are differentiable so that
batch-hard mining sees the global batch; DeepSpeed and DDP average parameter gradients over ranks, and the backward of
the gather sums over ranks, so a loss computed over the gathered batch on every rank has exactly the gradient of one
process with the full batch.
"""

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn

_control_group: dist.ProcessGroup | None = None


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of `tensor` over all ranks, any shape; the gradient is summed over ranks too."""
    return dist_nn.all_reduce(tensor) if world_size() > 1 else tensor


def gather_rows(tensor_B: torch.Tensor) -> torch.Tensor:
    """All ranks' rows, in rank order, along dimension 0: B x ... to (ranks * B) x ... Equal B on every rank.

    Floating-point tensors carry gradients back to the rank they came from.
    """
    if world_size() == 1:
        return tensor_B
    if tensor_B.is_floating_point() and tensor_B.requires_grad:
        return torch.cat(dist_nn.all_gather(tensor_B.contiguous()))
    parts = [torch.empty_like(tensor_B) for _ in range(world_size())]
    dist.all_gather(parts, tensor_B.contiguous())
    return torch.cat(parts)


def gather_objects(value: object) -> list:
    """One picklable object from every rank, in rank order, on every rank. Only for our own small facts."""
    if world_size() == 1:
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def mean_over_ranks(value: float) -> float:
    """The mean of a plain number over ranks."""
    if world_size() == 1:
        return value
    tensor = torch.tensor([value], dtype=torch.float64)
    if dist.get_backend() == "nccl":
        tensor = tensor.cuda()
    dist.all_reduce(tensor)
    return float(tensor.item()) / world_size()


def any_rank(flag: bool) -> bool:
    """True on every rank if it is true on one: how ranks agree to stop together.

    Over a group of its own on the CPU, so that asking at every step never waits for a GPU.
    """
    global _control_group
    if world_size() == 1:
        return flag
    if _control_group is None:
        _control_group = dist.new_group(backend="gloo")
    found = torch.tensor([int(flag)])
    dist.all_reduce(found, dist.ReduceOp.MAX, group=_control_group)
    return bool(found.item())


def average_batchnorm_statistics(module: torch.nn.Module) -> None:
    """Replace every running mean and variance by its mean over ranks, in place.

    DeepSpeed never synchronises buffers and saves rank 0's only, so this runs before every evaluation and every save.
    The mean of variances is not the variance of the union; with synchronised norms the ranks agree already and this
    changes nothing.
    """
    if world_size() == 1:
        return
    for name, buffer in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            dist.all_reduce(buffer)
            buffer.div_(world_size())
