"""Remembered launches: each uses the kernel that Triton's own launcher would choose, and hooks see all of them."""

import random
from types import SimpleNamespace

import pytest
import torch
from triton import knobs
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import kernels.alignment.kernel as alignment
import kernels.batch_norm.kernel as batch_norm
import kernels.gem_pyramid.kernel as gem_pyramid
import kernels.ring_aggregate.kernel as ring_aggregate
from kernels.common import launch_kernel
from perf.parts.fake_triton import fake_triton_driver

HALF, SINGLE = torch.bfloat16, torch.float32
OWN_LAUNCHES = JITFunction.run


@pytest.fixture
def launched(monkeypatch):
    """A fake GPU that compiles nothing: what was launched, and `derived`, how often Triton chose a kernel itself."""
    found = SimpleNamespace(launches=[], derived=0)

    def compile_nothing(self, key, signature, device, *_):
        def run(x, y, z, stream, function, metadata, launch_metadata, enter, leave, *arguments):
            found.launches.append((self.__name__, function, (x, y, z), stream, [_described(a) for a in arguments]))

        compiled = SimpleNamespace(run=run, function=(self.__name__, key), packed_metadata=())
        compiled.launch_metadata = lambda *_: None
        self.device_caches[device][0][key] = compiled
        return compiled

    def derive(self, *arguments, **options):
        found.derived += 1
        return OWN_LAUNCHES(self, *arguments, **options)

    monkeypatch.setattr(JITFunction, "_do_compile", compile_nothing)
    monkeypatch.setattr(JITFunction, "run", derive)
    monkeypatch.setattr(launch_kernel, "INTERPRETED", False)
    with fake_triton_driver():
        # Triton keeps what it compiled by device, so nothing that other tests compiled is found on this one.
        monkeypatch.setattr(driver.active, "get_current_device", lambda: id(found))
        monkeypatch.setattr(driver.active, "get_current_stream", lambda device: 7)
        yield found


def _described(argument):
    """An argument, but of a tensor only what the choice of a kernel may depend on."""
    if isinstance(argument, torch.Tensor):
        return tuple(argument.shape), argument.dtype, argument.data_ptr() % 16
    return (_described(argument.base), argument.block_shape) if hasattr(argument, "block_shape") else argument


def _empty(*shape, dtype=HALF, shift=0):
    """A contiguous tensor that begins `shift` elements after an address that is a multiple of 16."""
    count = torch.Size(shape).numel()
    return torch.zeros(count + shift, dtype=dtype)[shift:].view(shape)


def _align(images=3, length=18, channels=64, dtype=HALF, negatives=True, positives=True, shift=0, mask=0, grad=0):
    features = _empty(images, length, channels, dtype=dtype, shift=shift)
    rows = torch.arange(images), torch.arange(images * positives), torch.arange(images * negatives)
    inputs = (features, _empty(images, length, dtype=SINGLE, shift=mask), *rows, 50.0)
    reconstruction, near, far, _, *saved = alignment.forward(*inputs)
    gradients = _empty(*reconstruction.shape, dtype=dtype, shift=grad), torch.ones_like(near), torch.ones_like(far)
    alignment.backward(*gradients, *inputs, reconstruction, *saved)


def _gem_pyramid(images=2, height=6, channels=32, levels=(1, 3), p=3.0, dtype=HALF, shift=0):
    features = _empty(images, height, 3, channels, dtype=dtype, shift=shift)
    pooled = gem_pyramid.forward(features, levels, p, 1e-6)
    gem_pyramid.backward(torch.ones_like(pooled), features, pooled, levels, p, 1e-6)


def _ring_aggregate(images=2, parts=4, width=32, projection=16, rounds=2, dtype=HALF, shift=0):
    inputs = [_empty(images, parts, size, dtype=dtype, shift=shift) for size in (width, projection, projection)]
    ring_aggregate.backward(ring_aggregate.forward(*inputs, rounds), *inputs, rounds)


def _batch_norm(positions=40, channels=32, relu=True, residual=True, dtype=HALF, weight=SINGLE, shift=0):
    x, added = _empty(positions, channels, dtype=dtype, shift=shift), _empty(positions, channels, dtype=dtype)
    parameters = torch.ones(channels, dtype=weight), torch.ones(channels, dtype=weight)
    mean, _, scale = batch_norm.moments(x, 1e-5)
    fixed = ((mean, scale), *parameters)
    y = batch_norm.normalise(x, added if residual else None, *fixed, relu)
    dz, *sums, _ = batch_norm.gradient_sums(torch.ones_like(y), x, y if residual else None, *fixed, relu)
    batch_norm.gradient(dz, x, *fixed, (*sums, positions), relu and not residual)


CALLS = {
    _align: [
        {},
        {"images": 1},
        {"images": 16},
        {"length": 1},
        {"length": 16},
        {"length": 162, "channels": 256},
        {"length": 200, "images": 2},
        {"channels": 72},
        {"dtype": SINGLE},
        {"negatives": False},
        {"positives": False},
        {"shift": 1},
        {"shift": 8},
        {"mask": 1},
        {"grad": 1},
    ],
    _gem_pyramid: [
        {},
        {"images": 16},
        {"channels": 33},
        {"channels": 1},
        {"levels": (1, 2, 6)},
        {"p": 1.0},
        {"dtype": SINGLE},
        {"shift": 1},
    ],
    _ring_aggregate: [
        {},
        {"parts": 1},
        {"width": 30},
        {"projection": 20},
        {"rounds": 1},
        {"rounds": 16},
        {"dtype": SINGLE},
        {"shift": 3},
    ],
    _batch_norm: [
        {},
        {"positions": 1},
        {"positions": 64},
        {"channels": 5},
        {"relu": False},
        {"residual": False},
        {"dtype": SINGLE},
        {"weight": HALF},
        {"shift": 1},
    ],
}


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__[1:])
def test_a_remembered_launch_is_the_one_that_triton_would_make(launched, call):
    order = 2 * CALLS[call]
    random.Random(0).shuffle(order)
    for options in order:
        call(**options)
    found, first = launched.launches[:], launched.derived
    assert len(found) > first, "nothing was remembered"
    for options in order:
        call(**options)
    assert launched.derived == first, "a launch was not remembered"
    launched.launches.clear()
    with launch_kernel.triton_launches():
        for options in order:
            call(**options)
    assert launched.derived == first + len(found)
    for mine, own in zip(found, launched.launches, strict=True):
        assert mine == own


def test_float32_products_follow_the_precision_that_is_set(launched):
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "high", "highest", "high"):
            torch.set_float32_matmul_precision(precision)
            launched.launches.clear()
            _align(dtype=SINGLE)
            scores = next(arguments for name, *_, arguments in launched.launches if name == "scores_kernel")
            assert ("ieee" in scores, "tf32" in scores) == (precision == "highest", precision == "high")
    finally:
        torch.set_float32_matmul_precision(before)


def test_hooks_on_launches_are_called(launched):
    _gem_pyramid()
    seen = []
    knobs.runtime.launch_enter_hook.add(seen.append)
    try:
        derived = launched.derived
        _gem_pyramid()
        assert launched.derived == derived + 3  # by Triton's own launcher, which calls the hook
    finally:
        knobs.runtime.launch_enter_hook.remove(seen.append)


def test_one_program_warps_a_pair_where_that_takes_no_longer(launched):
    """An H100 has 132 multiprocessors: two programs for each of 66 pairs fill them as long as one for each of 132."""
    found = {}
    for images in (33, 66, 67, 96):
        launched.launches.clear()
        _align(images, length=17, channels=128)
        forward = ("weights_kernel", "warp_whole_kernel", "finish_kernel")
        found[2 * images] = [(name, grid[0]) for name, _, grid, *_ in launched.launches if name in forward]
    shared = [("weights_kernel", 2), ("warp_whole_kernel", 2)]
    assert found == {
        66: [*shared, ("finish_kernel", 66)],
        132: [("warp_whole_kernel", 1)],
        134: [*shared, ("finish_kernel", 134)],
        192: [*shared, ("finish_kernel", 192)],
    }


def test_a_launch_is_made_on_the_gpu_of_its_tensors(launched, monkeypatch):
    """`--device cuda:1` leaves the first GPU the current one, on which Triton would launch."""
    current, seen = [0], []

    class Device:
        def __init__(self, device):
            self.index = device.index

        def __enter__(self):
            current.append(self.index)

        def __exit__(self, *_):
            current.pop()

    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    monkeypatch.setattr(driver.active, "get_current_stream", lambda device: 10 + device)
    monkeypatch.setattr(driver.active, "get_current_device", lambda: current[-1])

    class Kernel:
        def __getitem__(self, grid):
            return lambda *arguments, **options: (
                seen.append(("triton", current[-1]))
                or SimpleNamespace(
                    run=lambda x, y, z, stream, *_: seen.append((stream, current[-1])), function=1, packed_metadata=()
                )
            )

    launches, kernel = launch_kernel.Launches(), Kernel()
    for index in (0, 1, 0, 1):
        tensor = SimpleNamespace(device=torch.device("cuda", index), dtype=HALF, data_ptr=lambda: 0)
        launches.of((), tensor)(kernel, (1,), tensor)
    assert seen == [("triton", 0), ("triton", 1), (10, 0), (11, 1)]
