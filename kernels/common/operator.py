"""A forward and a backward as one differentiable operator: a custom op where calls are traced, cheaper elsewhere."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from kernels.common.checks import refuse_double_backward


class Operator:
    """Calls `forward`, whose gradient is that of `differentiate`.

    PyTorch's custom ops `kernels::<name>` and `kernels::<name>_backward` are registered. They are one operator each for
    `torch.compile`, for fake tensors and for what counts operators or FLOPs. But the way to a custom op takes the host
    longer than launching a kernel. Where calls are simply executed, an autograd function therefore calls the same
    two Python functions, with the same results.

    name: the operator's; forward, backward: annotated as `torch.library.custom_op` requires; fake, backward_fake: the
    same without values; save: the forward's `setup_context`; differentiate: takes the backward to call, then the
    arguments of an autograd function's backward, and returns the gradients of the forward's arguments.
    """

    def __init__(
        self,
        name: str,
        forward: Callable[..., Any],
        fake: Callable[..., Any],
        backward: Callable[..., Any],
        backward_fake: Callable[..., Any],
        save: Callable[[Any, tuple[Any, ...], Any], None],
        differentiate: Callable[..., tuple[Any, ...]],
    ) -> None:
        self._op = torch.library.custom_op(f"kernels::{name}", forward, mutates_args=())
        self._op.register_fake(fake)
        backward_op = torch.library.custom_op(f"kernels::{name}_backward", backward, mutates_args=())
        backward_op.register_fake(backward_fake)
        backward_op.register_autograd(lambda ctx, *_: refuse_double_backward(name))

        def gradients(ctx: Any, *given: torch.Tensor | None) -> tuple[Any, ...]:
            executed = all(gradient is None or _is_executed(gradient) for gradient in given)
            # For a second derivative, gradients are enabled here. The custom op refuses it.
            direct = executed and not torch.is_grad_enabled()
            return differentiate(backward if direct else backward_op, ctx, *given)

        self._op.register_autograd(gradients, setup_context=save)

        class Executed(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *inputs: Any) -> Any:
                output = forward(*inputs)
                save(ctx, inputs, output)
                return output

            backward = staticmethod(gradients)

        self._function = Executed

    def __call__(self, tensor: torch.Tensor, *rest: Any) -> Any:
        """`forward` with these arguments."""
        return (self._function.apply if _is_executed(tensor) else self._op)(tensor, *rest)


def _is_executed(tensor: torch.Tensor) -> bool:
    """Whether a call with this tensor is simply executed: not traced, transformed or seen by a `TorchDispatchMode`."""
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode() or torch._C._are_functorch_transforms_active():
        return False
    return type(tensor) is torch.Tensor or type(tensor) is torch.nn.Parameter
