"""How many kernels a training step launches beside those of the backbone and the alignment, for the performance model.

Counted on a CPU, from the operators that PyTorch dispatches: each that computes is at least one launch on a GPU. A
batch norm counts as one, but may be two or three.
"""

from collections import Counter
from typing import Any, cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from perf.parts.train_step import Step, Variant, batch
from tacaf.model.norm import own_statistics

# Operators that are no views and still launch nothing.
ALLOCATING = {
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::new_empty",
    "aten::new_empty_strided",
    "aten::_unsafe_view",
    "aten::lift_fresh",
    "aten::promote_types",
}
# Operators that launch more than one kernel, as PyTorch's sources for CUDA have it.
SEVERAL = {
    "aten::masked_fill": 2,  # a copy, then the filling
    "aten::addmm": 2,  # the summand is copied to the result
    "aten::select_backward": 2,  # zeros, and a copy into them
    "aten::slice_backward": 2,
    "aten::index_put": 6,  # with accumulation: three for addresses, their numbers, their sorting, the sum
}
# Of these the performance model counts the kernels one by one (perf/parts/launches.py).
COUNTED_APART = {"kernels::align", "kernels::align_backward"}


class Launched(TorchDispatchMode):
    """Within the block, `operators`: how many kernels each operator would launch on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        if not func.is_view and name not in ALLOCATING | COUNTED_APART:
            self.operators[name] += SEVERAL.get(name, 1)
        return func(*args, **(kwargs or {}))


def launches(variant: Variant) -> Counter[str]:
    """Operator to its launches in a step of `variant`, forward and backward, without those of the backbone's passes.

    The sizes are small, because the number depends on none of them.
    """
    step = Step(variant, batch("cpu", 1, 96, 48), "cpu", small=True, bf16=True)
    with Launched() as whole:
        step.forward().backward()
    step.optimizer.zero_grad(set_to_none=True)
    return whole.operators - _backbone(step)


def _backbone(step: Step) -> Counter[str]:
    """The same of the backbone alone, with its second pass of layer 4 where CMAAM makes one."""
    backbone, images = cast(Any, step.model).backbone, step.data["images"]
    with Launched() as alone, torch.autocast("cpu", torch.bfloat16):
        maps = backbone(images, step.visible)
        found = list(maps) if step.variant.cmaam else [maps[1]]
        if step.variant.cmaam:
            again = maps[0].detach().requires_grad_()
            with own_statistics(backbone):
                found.append(backbone.layer4(again))
    gradients = [torch.ones_like(each) for each in found]
    with alone:
        torch.autograd.backward(found, gradients)
    return alone.operators
