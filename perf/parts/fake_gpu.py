"""A fake GPU, so that code for a GPU can be rehearsed on a CPU before it runs on a real one.

    with fake_gpu():
        bench_kernels.main(["--device", "cuda", ...])

Tensors requested on "cuda" are CPU tensors, so the ops take their CPU path and results are right. Streams, events,
graphs and memory statistics enforce the rules that a CPU can check: a graph is captured on one stream, nothing waits
for the device during a capture, and a graph replays only what was captured, on the memory of the capture. Triton
compiles kernels for an H100 and launches nothing, so outputs of a direct launch are arbitrary. torch.compile traces and
differentiates, but generates no code. Times and memory of a rehearsal mean nothing.
"""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from perf.parts.fake_triton import CAPABILITY, MULTIPROCESSORS, fake_triton_driver
from perf.parts.tape import Tape

NAME = "no GPU (rehearsal)"
MEMORY_BYTES = 80 * 2**30


class FakeStream:
    """A stream without work, identified by its number; 0 is the default stream."""

    _made = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        FakeStream._made += 1
        self.cuda_stream = FakeStream._made

    def wait_stream(self, other: "FakeStream") -> None:
        _refuse_while_capturing("Stream.wait_stream")

    def wait_event(self, event: "FakeEvent") -> None:
        pass

    def record_event(self, event: "FakeEvent | None" = None) -> "FakeEvent":
        event = event or FakeEvent()
        event.record(self)
        return event

    def synchronize(self) -> None:
        _refuse_while_capturing("Stream.synchronize")

    def query(self) -> bool:
        return True


class FakeEvent:
    """An event that reads the host's clock."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.recorded_s: float | None = None

    def record(self, stream: FakeStream | None = None) -> None:
        self.recorded_s = time.perf_counter()

    def elapsed_time(self, end: "FakeEvent") -> float:
        """Milliseconds, never 0, because callers divide by it."""
        if self.recorded_s is None or end.recorded_s is None:
            raise RuntimeError("Both events must be recorded before calculating elapsed time.")
        return max(1000 * (end.recorded_s - self.recorded_s), 1e-3)

    def synchronize(self) -> None:
        _refuse_while_capturing("Event.synchronize")

    def wait(self, stream: FakeStream | None = None) -> None:
        pass

    def query(self) -> bool:
        return True


class FakeGraph:
    """A CUDA graph of operators: the capture changes nothing, a replay runs them on the memory of the capture."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._tape: Tape | None = None
        self.captured = False

    def capture_begin(self, *_: Any, **__: Any) -> None:
        if _STATE.stream is _STATE.default:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
        _refuse_while_capturing("CUDAGraph.capture_begin")
        _STATE.capturing, self._tape = _STATE.stream, Tape()
        self._tape.__enter__()

    def capture_end(self) -> None:
        if self._tape is None or _STATE.capturing is None or _STATE.capturing is not _STATE.stream:
            raise RuntimeError("Capture must end on the same stream it began on.")
        _STATE.capturing, self.captured = None, True
        self._tape.__exit__(None, None, None)
        self._tape.end()

    def replay(self) -> None:
        if not self.captured or self._tape is None:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        self._tape.play()

    def reset(self) -> None:
        self._tape, self.captured = None, False

    def pool(self) -> tuple[int, int]:
        return (0, 1)


class _State:
    """The state of the one fake device."""

    def __init__(self) -> None:
        self.default = FakeStream()
        self.default.cuda_stream = 0
        self.stream = self.default
        self.capturing: FakeStream | None = None


_STATE = _State()


def _refuse_while_capturing(what: str) -> None:
    if _STATE.capturing is not None:
        raise RuntimeError(f"{what}: operation not permitted when stream is capturing")


@contextlib.contextmanager
def _stream(stream: FakeStream | None) -> Iterator[None]:
    before, _STATE.stream = _STATE.stream, stream or _STATE.stream
    try:
        yield
    finally:
        _STATE.stream = before


@contextlib.contextmanager
def _graph(graph: FakeGraph, pool: Any = None, stream: FakeStream | None = None, **_: Any) -> Iterator[None]:
    """Replaces torch.cuda.graph. As with the original, the stream remains set if the end of the capture fails."""
    before, _STATE.stream = _STATE.stream, stream or FakeStream()
    graph.capture_begin()
    try:
        yield
    finally:
        graph.capture_end()
        _STATE.stream = before


def _synchronize(device: Any = None) -> None:
    _refuse_while_capturing("torch.cuda.synchronize")


def _set_stream(stream: FakeStream) -> None:
    _STATE.stream = stream


def _on_cpu(value: Any) -> Any:
    """The CPU instead of a GPU; any other value unchanged."""
    if isinstance(value, str) and value.split(":")[0] == "cuda":
        return torch.device("cpu")
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == "cuda" else value


class _TensorsOnCpu(TorchFunctionMode):
    """Creates every tensor that is requested on the GPU on the CPU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        if func in (torch.Tensor.cuda, torch.Tensor.pin_memory):
            return args[0]
        kwargs = {name: _on_cpu(value) for name, value in (kwargs or {}).items()}
        return func(*(_on_cpu(value) for value in args), **kwargs)


def _properties(device: Any = None) -> SimpleNamespace:
    return SimpleNamespace(
        name=NAME,
        major=CAPABILITY[0],
        minor=CAPABILITY[1],
        total_memory=MEMORY_BYTES,
        multi_processor_count=MULTIPROCESSORS,
        L2_cache_size=50 * 2**20,
        warp_size=32,
    )


def _cuda_names() -> dict[str, Any]:
    """The replacements for names in torch.cuda."""
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_name": lambda device=None: NAME,
        "get_device_capability": lambda device=None: CAPABILITY,
        "get_device_properties": _properties,
        "is_bf16_supported": lambda *_, **__: True,
        "mem_get_info": lambda device=None: (MEMORY_BYTES, MEMORY_BYTES),
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "memory_reserved": lambda device=None: 0,
        "max_memory_reserved": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "empty_cache": lambda: None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device=None: None,
        "synchronize": _synchronize,
        "Event": FakeEvent,
        "Stream": FakeStream,
        "stream": _stream,
        "current_stream": lambda device=None: _STATE.stream,
        "default_stream": lambda device=None: _STATE.default,
        "set_stream": _set_stream,
        "CUDAGraph": FakeGraph,
        "graph": _graph,
        "graph_pool_handle": lambda: (0, 1),
        "is_current_stream_capturing": lambda: _STATE.capturing is not None,
    }


def _compile(original: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile without code generation: a CPU's code would take a compiler minutes and prove nothing for a GPU."""

    def compiled(model: Any = None, *, backend: Any = None, mode: Any = None, options: Any = None, **words: Any) -> Any:
        return original(model, backend="aot_eager", **words)

    return compiled


@contextlib.contextmanager
def _replaced(owner: Any, names: dict[str, Any]) -> Iterator[None]:
    before = {name: getattr(owner, name) for name in names}
    try:
        for name, value in names.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def rehearsing() -> bool:
    """Whether the GPU that PyTorch reports is the fake one."""
    return torch.cuda.Event is FakeEvent


@contextlib.contextmanager
def fake_gpu() -> Iterator[None]:
    """Code within the block gets the fake GPU. Raises RuntimeError on a machine that has a GPU."""
    if torch.cuda.is_available():
        raise RuntimeError("The fake GPU is for machines without one; this machine has a GPU, use it.")
    global _STATE
    _STATE = _State()
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # torch._dynamo.reset imports PyTorch's own Inductor if there is a GPU, and Inductor uses a deprecated name
        warnings.filterwarnings("ignore", message="`torch.jit.script_method` is deprecated")
        stack.enter_context(_replaced(torch.cuda, _cuda_names()))
        stack.enter_context(_replaced(torch, {"compile": _compile(torch.compile)}))
        # torch.compile would ask the real driver for its current stream if PyTorch is a CUDA build
        stack.enter_context(_replaced(torch.accelerator, {"is_available": lambda: False}))
        stack.enter_context(fake_triton_driver())
        stack.enter_context(_TensorsOnCpu())
        yield
