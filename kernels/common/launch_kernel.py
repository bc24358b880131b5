"""Launches Triton kernels, and remembers which compiled kernel the launches of a pass need."""

import contextlib
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from triton import knobs
from triton.runtime import driver

# Whether the kernels that import this file run in Triton's interpreter, which neither compiles nor binds anything.
INTERPRETED = knobs.runtime.interpret
# A compiled kernel's launcher, its handle on the device and its metadata, as the launcher expects them.
_Bound = tuple[Callable[..., None], Any, Any]


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
            run, function, metadata = bound
            x, y, z = (*grid, 1, 1)[:3]
            run(x, y, z, self._stream, function, metadata, None, None, None, *arguments)
            return
        compiled = kernel[grid](*arguments, **options)
        if self._bound is not None and compiled is not None:
            self._bound[id(kernel)] = compiled.run, compiled.function, compiled.packed_metadata


class Launches:
    """The launches of a pass, which Triton's own launcher makes the first time for each kind of call.

    For every launch, Triton's launcher finds out from all arguments which compiled kernel they need: from types, from
    the integers that are 1 or multiples of 16, and from the addresses that are. That takes the host longer than the
    launch. In a pass all of it follows from the shapes, dtypes and addresses of what the pass was given, so it is
    found out once for each kind of them.
    """

    def __init__(self) -> None:
        self._kinds: dict[Hashable, dict[int, _Bound]] = {}

    def of(self, key: Hashable, *tensors: torch.Tensor | None) -> Launch:
        """The launches of a call, on the GPU of the first tensor.

        key: all shapes, constants and options that the kernels' arguments are computed from. tensors: those that the
        caller of the pass allocated. What the pass itself allocates begins at an address of whose divisibility only the
        shapes decide.
        """
        elsewhere = _elsewhere(tensors[0])
        # Hooks, such as a profiler's, are told more about a launch than is kept here.
        hooked = knobs.runtime.launch_enter_hook.calls or knobs.runtime.launch_exit_hook.calls
        if INTERPRETED or _always_derived or hooked:
            return Launch(None, 0, elsewhere)
        device = driver.active.get_current_device() if elsewhere is None else elsewhere.index
        stream = driver.active.get_current_stream(device)
        kinds = tuple([x if x is None else (x.dtype, x.data_ptr() % 16) for x in tensors])
        return Launch(self._kinds.setdefault((key, device, kinds), {}), stream, elsewhere)


def _elsewhere(tensor: torch.Tensor | None) -> torch.device | None:
    """The tensor's GPU, if it is not the current one. Triton would launch on the current one."""
    if tensor is None or tensor.device.type != "cuda" or tensor.device.index == torch.cuda.current_device():
        return None
    return tensor.device


_always_derived = False


@contextlib.contextmanager
def triton_launches() -> Iterator[None]:
    """Within the block, every launch is made by Triton's own launcher, as where nothing is remembered."""
    global _always_derived
    before, _always_derived = _always_derived, True
    try:
        yield
    finally:
        _always_derived = before
