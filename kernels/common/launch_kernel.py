"""Launches Triton kernels, and remembers which compiled kernels a pass needs."""

import contextlib
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from triton import knobs
from triton.runtime import driver

# Whether the kernels that import this file run in Triton's interpreter, which neither compiles nor binds anything.
INTERPRETED = knobs.runtime.interpret
# A compiled kernel's launcher, its handle on the device and its metadata, as the launcher expects them; then the
# compiled kernel, which may be unloaded once nothing refers to it, and the kernel whose id is the key.
_Bound = tuple[Callable[..., None], Any, Any, Any, Any]


class Launch:
    """The launches of one call of a pass: `launch(kernel, grid, *arguments, **options)`, each kernel at most once.

    The arguments are the kernel's, constants included, by position; the options are Triton's, such as `num_warps`.
    """

    __slots__ = ("_bound", "_elsewhere", "_stream")

    def __init__(self, bound: dict[int, _Bound] | None, stream: int, elsewhere: torch.device | None) -> None:
        self._bound = bound  # None: leave every launch to Triton's launcher
        self._stream = stream
        self._elsewhere = elsewhere  # the GPU to launch on, if it is not the current one

    def __call__(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        if self._elsewhere is None:
            self._make(kernel, grid, arguments, options)
        else:
            with torch.cuda.device(self._elsewhere):
                self._make(kernel, grid, arguments, options)

    def _make(self, kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        bound = None if self._bound is None else self._bound.get(id(kernel))
        if bound is not None:
            run, function, metadata, *_ = bound
            x, y, z = (*grid, 1, 1)[:3]
            run(x, y, z, self._stream, function, metadata, None, None, None, *arguments)
            return
        compiled = kernel[grid](*arguments, **options)
        if self._bound is not None and compiled is not None:
            handles = compiled.run, compiled.function, compiled.packed_metadata
            self._bound[id(kernel)] = (*handles, compiled, kernel)


class Launches:
    """The launches of a pass, which Triton's own launcher makes the first time for each kind of call.

    Before every launch, Triton's launcher works out from all arguments which compiled kernel to use: from their types,
    from integers that are 1 or multiples of 16, and from addresses that are multiples of 16. This takes the host longer
    than the launch itself. In a pass it all follows from the shapes, dtypes and addresses of what the pass was given,
    so it is worked out once for each kind of them. Later changes of Triton's settings have no effect on these launches.
    """

    def __init__(self) -> None:
        self._kinds: dict[Hashable, dict[int, _Bound]] = {}

    def of(self, key: Hashable, *tensors: torch.Tensor | None) -> Launch:
        """The launches of a call, on the GPU of the first tensor.

        key: all shapes, whole numbers, constants and options that the kernels' arguments are computed from. Other
        numbers must be floats, which are no part of a compiled kernel. tensors: those that the caller of the pass
        allocated, contiguous. The divisibility of the addresses that the pass itself allocates depends only on the
        shapes.
        """
        elsewhere = _elsewhere(tensors[0])
        if INTERPRETED or _always_derived or _hooked():
            return Launch(None, 0, elsewhere)
        device = driver.active.get_current_device() if elsewhere is None else elsewhere.index
        stream = driver.active.get_current_stream(device)
        kinds = tuple([x if x is None else (x.dtype, x.data_ptr() % 16) for x in tensors])
        return Launch(self._kinds.setdefault((key, device, kinds), {}), stream, elsewhere)


def _hooked() -> bool:
    """Whether something wants to be told about launches, such as a profiler. It is told more than is kept here."""
    hooks = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    return any(getattr(hook, "calls", hook) for hook in hooks)


def _elsewhere(tensor: torch.Tensor | None) -> torch.device | None:
    """The tensor's GPU, if it is not the current one. Triton would launch on the current one."""
    if tensor is None or tensor.device.type != "cuda" or tensor.device.index == torch.cuda.current_device():
        return None
    return tensor.device


_always_derived = False


@contextlib.contextmanager
def triton_launches() -> Iterator[None]:
    """Within the block, every launch is made by Triton's own launcher, as if nothing were remembered."""
    global _always_derived
    before, _always_derived = _always_derived, True
    try:
        yield
    finally:
        _always_derived = before
