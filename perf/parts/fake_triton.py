"""A Triton driver for a fake GPU: kernels are compiled for an H100 and never launched."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

CAPABILITY = (9, 0)  # an H100's
SHARED_BYTES = 227 * 1024  # the most that a block may request
MULTIPROCESSORS = 132


@contextlib.contextmanager
def fake_triton_driver() -> Iterator[None]:
    """Within the block, Triton compiles for the fake GPU."""
    from triton.runtime import driver

    before = driver._active
    driver.set_active(_driver())
    try:
        yield
    finally:
        driver._active = before


def _driver() -> Any:
    """A Triton driver that compiles for an H100, and loads and launches nothing."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import GPUDriver

    class Utils:
        def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
            return 1, 1, 32, 0, 1024  # module, function, registers, spills, threads of a block

        def unload_module(self, module: int) -> None:
            pass

        def get_device_properties(self, device: int) -> dict[str, int]:
            return {
                "max_shared_mem": SHARED_BYTES,
                "multiprocessor_count": MULTIPROCESSORS,
                "warpSize": 32,
                "max_num_regs": 65536,
                "sm_clock_rate": 1,
                "mem_clock_rate": 1,
                "mem_bus_width": 1,
            }

    class Driver(GPUDriver):
        def __init__(self) -> None:
            self.utils = Utils()
            self.launcher_cls = lambda source, metadata: lambda *args: None
            self.get_current_device, self.set_current_device = (lambda: 0), (lambda device: None)
            self.get_current_stream = lambda device: 0
            self.get_device_capability = lambda device=0: CAPABILITY

        @staticmethod
        def is_active() -> bool:
            return True

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 10 * CAPABILITY[0] + CAPABILITY[1], 32)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

        def map_python_to_cpp_type(self, ty: str) -> str:
            return ty

        def get_benchmarker(self) -> Callable[..., Any]:
            from triton.testing import do_bench

            return do_bench

        def get_device_interface(self) -> Any:
            return torch.cuda

        def get_empty_cache_for_benchmark(self) -> torch.Tensor:
            return torch.empty(1, dtype=torch.int32)

        def clear_cache(self, cache: torch.Tensor) -> None:
            cache.zero_()

    return Driver()
