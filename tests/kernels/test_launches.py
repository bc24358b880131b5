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


def _align(
    images=3, length=18, channels=64, dtype=HALF, negatives=True, positives=True, beta=50.0, choice=None,
    features=0, mask=0, anchor=0, positive=0, negative=0, g=0, near=0, far=0,
):  # fmt: skip
    """The last eight are shifts of their tensors."""
    targets = (images, anchor), (images * positives, positive), (images * negatives, negative)
    rows = [_empty(count, dtype=torch.int64, shift=shift) for count, shift in targets]
    map_BLC = _empty(images, length, channels, dtype=dtype, shift=features)
    inputs = (map_BLC, _empty(images, length, dtype=SINGLE, shift=mask), *rows, beta)
    reconstruction, near_NL, far_NL, _, *saved = alignment.forward(*inputs, choice)
    gradients = (
        _empty(*reconstruction.shape, dtype=dtype, shift=g),
        _empty(*near_NL.shape, dtype=SINGLE, shift=near),
        _empty(*far_NL.shape, dtype=SINGLE, shift=far),
    )
    alignment.backward(*gradients, *inputs, reconstruction, *saved, choice)


def _gem_pyramid(images=2, height=6, channels=32, levels=(1, 3), p=3.0, dtype=HALF, shift=0, grad=0):
    features = _empty(images, height, 3, channels, dtype=dtype, shift=shift)
    pooled = gem_pyramid.forward(features, levels, p, 1e-6)
    gem_pyramid.backward(_empty(*pooled.shape, dtype=SINGLE, shift=grad), features, pooled, levels, p, 1e-6)


def _ring_aggregate(images=2, parts=4, width=32, projection=16, rounds=2, dtype=HALF, shift=0, grad=0, halves=False):
    inputs = [_empty(images, parts, size, dtype=dtype, shift=shift) for size in (width, projection, projection)]
    if halves:  # of one product, whose rows are further apart
        inputs[1:] = _empty(images, parts, 2 * projection, dtype=dtype).chunk(2, dim=-1)
    out = ring_aggregate.forward(*inputs, rounds)
    ring_aggregate.backward(_empty(*out.shape, dtype=dtype, shift=grad), *inputs, rounds)


def _batch_norm(
    positions=40, channels=32, relu=True, residual=True, dtype=HALF, weight=SINGLE, eps=1e-5, divisor=None,
    shift=0, added=0, parameters=0, statistics=0, grad=0,
):  # fmt: skip
    """The last five are shifts of their tensors."""
    x = _empty(positions, channels, dtype=dtype, shift=shift)
    learned = [_empty(channels, dtype=weight, shift=parameters) for _ in range(2)]
    batch_norm.moments(x, eps)
    fixed = ([_empty(channels, dtype=SINGLE, shift=statistics) for _ in range(2)], *learned)
    residual_MC = _empty(positions, channels, dtype=dtype, shift=added) if residual else None
    y = batch_norm.normalise(x, residual_MC, *fixed, relu)
    dy = _empty(positions, channels, dtype=dtype, shift=grad)
    dz, *sums, _ = batch_norm.gradient_sums(dy, x, y if residual else None, *fixed, relu)
    batch_norm.gradient(dz, x, *fixed, (*sums, divisor or positions), relu and not residual)


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
        {"beta": 1},
        {"beta": 16},
        {"choice": alignment.AMPERE},
        *({name: 1} for name in ("features", "mask", "anchor", "positive", "negative", "g", "near", "far")),
        {"features": 8},
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
        {"grad": 1},
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
        {"grad": 1},
        {"halves": True},
        {"projection": 8},
        {"halves": True, "projection": 8},  # at the same addresses, but rows that are a multiple of 16 apart
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
        {"eps": 1},
        {"eps": 16},
        {"divisor": 1},
        *({name: 1} for name in ("shift", "added", "parameters", "statistics", "grad")),
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
            _align(dtype=SINGLE, choice=alignment.TF32)
            (compiled,) = (key for name, (_, key), *_ in launched.launches if name == "scores_kernel")
            assert ("ieee" in compiled, "tf32" in compiled) == (precision == "highest", precision == "high")
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
