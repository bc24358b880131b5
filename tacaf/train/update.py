"""Backward and the optimiser's step, which changes nothing if a loss or the gradient is not finite.

On a GPU the host should not read the gradient's norm to decide, because it would wait for the whole backward pass, and
then the GPU for the host. So the device decides: PyTorch's fused optimisers take a flag, `found_inf`, and write nothing
if it is 1. In the other cases, ZeRO-3, an offloaded optimiser and `optim.fused: false`, the host waits and decides.
"""

import math
from typing import Any

import torch

from tacaf import distributed
from tacaf.train.ranges import Ranges


def decides_on_device(optimizer: torch.optim.Optimizer, zero_optimization: dict[str, Any]) -> bool:
    """Whether an engine with this optimiser and this section of DeepSpeed's settings uses the flag."""
    offload = (zero_optimization.get("offload_optimizer") or {}).get("device", "none")
    fused = all(group["fused"] for group in optimizer.param_groups)
    return fused and zero_optimization.get("stage", 0) < 3 and offload == "none"


def poisoned(loss: torch.Tensor, figures_F: torch.Tensor) -> torch.Tensor:
    """The same loss, with a gradient of NaN if any of the figures is not finite.

    The mean gradient over ranks is then NaN too, so that no rank updates anything.
    """
    return loss * (1 + (0 * figures_F).sum())


def update(
    engine: Any, loss: torch.Tensor, *, clip_norm: float, last: bool = True, ranges: Ranges | None = None
) -> torch.Tensor | None:
    """`backward`, then `optimize`."""
    backward(engine, loss, last=last)
    return optimize(engine, clip_norm=clip_norm, last=last, ranges=ranges)


def backward(engine: Any, loss: torch.Tensor, *, last: bool = True) -> None:
    """The gradients of one batch; after the `last` one of an update they are the mean over batches and ranks."""
    engine.set_gradient_accumulation_boundary(last)
    engine.backward(loss)


def optimize(engine: Any, *, clip_norm: float, last: bool = True, ranges: Ranges | None = None) -> torch.Tensor | None:
    """The optimiser's step, after the last batch of an update. `ranges`: those of the classifiers, if they are split.

    Returns the norm of the mean gradient before clipping, a float32 scalar on the device, without waiting for it; None
    before the last batch. If the norm is not finite, parameters and optimiser states do not change.
    """
    if not last:
        engine.step()  # counts the batch
        return None
    stage = engine.zero_optimization_stage()
    if stage == 0 and decides_on_device(engine.basic_optimizer, {}):
        return _step_by_flag(engine, _norm_of(_gradients(engine)), clip_norm, ranges)
    if stage in (1, 2) and not engine.zero_compute_grad_norm():
        parts = [part for group in engine.optimizer.averaged_gradients.values() for part in group]
        norm = distributed.sum_over_ranks(_norm_of(parts).square()).sqrt()  # every rank has different parameters
        return _step_by_flag(engine, norm, clip_norm, ranges)
    assert ranges is None, "the configuration refuses it: this engine clips without them"
    if stage == 0:
        norm = _norm_of(_gradients(engine))
        if math.isfinite(float(norm)):
            engine.step()
        else:
            engine.zero_grad()
        return norm
    engine.step()  # changes nothing if the norm is not finite
    return torch.full((), float(engine.get_global_grad_norm()), device=engine.device)


def _gradients(engine: Any) -> list[torch.Tensor]:
    return [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]


def _norm_of(gradients: list[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.get_total_norm(gradients)


def _step_by_flag(engine: Any, norm: torch.Tensor, clip_norm: float, ranges: Ranges | None) -> torch.Tensor:
    """A step of the engine's and the ranges' fused optimisers, which do nothing if the total norm is not finite."""
    optimizers = [engine.basic_optimizer]
    if ranges is not None:
        norm = (norm.square() + ranges.square_norm()).sqrt()
        optimizers.append(ranges.optimizer)
    first = [not any(optimizer.state.values()) for optimizer in optimizers]
    for optimizer in optimizers:
        optimizer.found_inf = (~norm.isfinite()).float()
        # The optimiser divides by it, in the kernel that reads the gradient anyway. The same formula as DeepSpeed's.
        optimizer.grad_scale = ((norm + 1e-6) / clip_norm).clamp(min=1) if clip_norm > 0 else None
    engine.step()
    if ranges is not None:
        ranges.optimizer.step()
        ranges.optimizer.zero_grad()
    # A first update that writes nothing leaves the momentum uninitialised.
    for optimizer in (optimizer for optimizer, new in zip(optimizers, first, strict=True) if new):
        for state in optimizer.state.values():
            if state.get("momentum_buffer") is not None:
                state["momentum_buffer"].masked_fill_(optimizer.found_inf.bool(), 0.0)
    return norm
