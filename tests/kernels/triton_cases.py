"""The real Triton kernels on small odd shapes: on a GPU as they are, without one in Triton's interpreter.

`test_triton.py` runs this file in a process of its own, because the interpreter must be switched on before Triton is
imported: `TRITON_INTERPRET=1 python -m pytest tests/kernels/triton_cases.py`, or plainly so on a GPU machine.
"""

import functools
import math

import pytest
import torch

from kernels.alignment import align, align_distance, feature_mask, soft_align
from kernels.alignment.tile_kernel import Tile
from kernels.batch_norm import batch_norm_relu
from kernels.batch_norm import kernel as batch_norm_kernel
from kernels.common.launch_kernel import triton_launches
from kernels.gem_pyramid import gem_pyramid
from kernels.gem_pyramid import kernel as gem_pyramid_kernel
from kernels.gem_pyramid.op import WHOLE_POWERS
from kernels.ring_aggregate import ring_aggregate
from perf.parts.cases import plain_align_distance, plain_soft_align
from tests.kernels.cases import alignment_case, assert_equal, outputs_and_gradients

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
# bfloat16 only on a GPU: the interpreter is silently wrong there
DTYPES = (torch.float32, torch.float16, torch.bfloat16) if GPU else (torch.float32, torch.float16)
# A GPU divides and takes exponentials and roots by instructions that are right to a few units of the last place.
# The gradient of the distance subtracts numbers of one size: dS / (|f_a| |f_k|) - slope P, once rounded.
SUBTRACTS = 3
TOLERANCE = {torch.float32: 1e-5 if GPU else 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def _poison():
    """Every buffer that is not filled yet holds NaN, so an element that no program writes shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(2).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def compare(op, dtype, *inputs, slack=1):
    """The kernel in `dtype` against the definition in float64 on the same rounded numbers: outputs and gradients."""
    inputs = [x.to(DEVICE, dtype) for x in inputs]
    found = outputs_and_gradients(lambda *x: op(*x, "triton"), *inputs)
    exact = outputs_and_gradients(lambda *x: op(*x, "reference"), *(x.double() for x in inputs))
    assert_equal([x.double() for x in found], exact, slack * TOLERANCE[dtype])


def _randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "levels", "p"),
    [
        ((2, 6, 3, 24), (1, 3, 6), 3.0),
        ((1, 4, 5, 8), (1, 2), 1.0),
        ((2, 4, 9, 136), (4,), 4.0),  # more channels than a block holds
        ((1, 2, 40, 8), (2, 1), 2.0),  # more positions than a block holds
    ],
)
def test_gem_pyramid(dtype, shape, levels, p):
    compare(lambda x, backend: gem_pyramid(x, levels, p, 1e-2, backend=backend), dtype, _randn(*shape))


@pytest.mark.parametrize("choice", gem_pyramid_kernel.CHOICES)
@pytest.mark.parametrize("levels", [(1, 3, 6), (6, 1), (1, 2, 4, 24), (3, 8)])
def test_every_tuning_choice_of_gem_pyramid(monkeypatch, choice, levels):
    for name in ("forward", "backward"):
        launch = functools.partial(getattr(gem_pyramid_kernel, name), choice=choice)
        monkeypatch.setattr(gem_pyramid_kernel, name, launch)
    run = lambda x, backend: gem_pyramid(x, levels, 3.0, 1e-2, backend=backend)  # noqa: E731
    compare(run, torch.float32, _randn(2, 24, 3, 40))


@pytest.mark.parametrize("p", WHOLE_POWERS)
def test_the_roots_of_gem_pyramid_are_exact_to_rounding(p):
    """Of one position the mean is x^p, whose root is x, for every power that float32 holds."""
    low, high = 1.3e-38 ** (1 / p), 3e38 ** (1 / p)
    x = torch.logspace(math.log10(low), math.log10(high), 4000, dtype=torch.float64).float().to(DEVICE)
    pooled = gem_pyramid(x.view(1, 1, 1, -1), (1,), float(p), low, backend="triton")
    torch.testing.assert_close(pooled.flatten(), x, rtol=4e-7, atol=0)


def test_gem_pyramid_of_zeros_and_of_a_turned_map():
    zeros = torch.zeros(1, 2, 2, 8, device=DEVICE)
    pooled, gradient = outputs_and_gradients(lambda x: gem_pyramid(x, (1, 2), 3.0, 1e-6, backend="triton"), zeros)
    torch.testing.assert_close(pooled, torch.full_like(pooled, 1e-6), rtol=1e-5, atol=0)
    assert not gradient.any()
    turned = _randn(2, 8, 4, 3).float().to(DEVICE).permute(0, 2, 3, 1)
    run = lambda x: gem_pyramid(x, (1, 2), 3.0, 1e-2, backend="triton")  # noqa: E731
    assert_equal(outputs_and_gradients(run, turned), outputs_and_gradients(run, turned.contiguous()), 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("parts", "rounds", "width", "projection"), [(3, 1, 8, 8), (6, 2, 72, 40), (7, 3, 16, 8), (16, 2, 24, 24)]
)
def test_ring_aggregate(dtype, parts, rounds, width, projection):
    inputs = (_randn(2, parts, width), _randn(2, parts, projection), _randn(2, parts, projection).flip(1))
    compare(lambda *x: ring_aggregate(*x[:3], rounds, backend=x[3]), dtype, *inputs)


@pytest.mark.parametrize("layout", ["halves of one product", "turned"])
def test_ring_aggregate_reads_projections_where_they_are(layout):
    u, both = _randn(2, 6, 24).float().to(DEVICE), _randn(2, 6, 16).float().to(DEVICE)
    if layout == "turned":
        both = both.mT.contiguous().mT
    in_place = lambda u, both: ring_aggregate(u, *both.chunk(2, dim=-1), 2, backend="triton")  # noqa: E731
    copied = lambda u, both: ring_aggregate(  # noqa: E731
        u, *(half.contiguous() for half in both.chunk(2, dim=-1)), 2, backend="triton"
    )
    assert_equal(outputs_and_gradients(in_place, u, both), outputs_and_gradients(copied, u, both), 0)


def test_ring_aggregate_of_mixed_dtypes_and_of_nothing():
    u, theta, phi = _randn(3, 2, 6, 8).to(DEVICE)
    inputs = (u.float(), theta.half(), phi.half())
    found = outputs_and_gradients(lambda *x: ring_aggregate(*x, 2, backend="triton"), *inputs)
    exact = outputs_and_gradients(lambda *x: ring_aggregate(*x, 2, backend="reference"), *(x.double() for x in inputs))
    assert [x.dtype for x in found] == [torch.float32, torch.float32, torch.float16, torch.float16]
    assert_equal([x.double() for x in found], exact, 1e-3)
    empty = outputs_and_gradients(lambda *x: ring_aggregate(*x, 2, backend="triton"), *(x[:0] for x in inputs))
    assert [len(x) for x in empty] == [0, 0, 0, 0]


def test_what_the_kernels_do_not_support_is_refused():
    with pytest.raises(ValueError, match=r"p = 2\.5"):
        gem_pyramid(_randn(1, 2, 2, 8).float().to(DEVICE), (1,), 2.5, 1e-2, backend="triton")
    with pytest.raises(ValueError, match="17 parts"):
        ring_aggregate(*_randn(3, 1, 17, 8).float().to(DEVICE), 1, backend="triton")
    with pytest.raises(ValueError, match="float64"):
        ring_aggregate(*_randn(3, 1, 3, 8).to(DEVICE), 1, backend="triton")


def _norm_inputs(shape, added):
    """Features with a mean far from 0, weight, bias, and a residual if one is `added`."""
    features, residual = _randn(2, *shape)
    weight, bias = _randn(2, shape[3])
    return [4 + 2 * features, weight + 2, bias, residual][: 3 + added]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 5, 8), (3, 5, 3, 136), (1, 1, 3, 3)])
def test_batch_norm(dtype, relu, added, shape):
    inputs = _norm_inputs(shape, added)
    # The gradient subtracts its own mean and its part along x, once rounded.
    compare(lambda *x: batch_norm_relu(*x[:3], 1e-3, *x[3:-1], relu=relu, backend=x[-1]), dtype, *inputs, slack=3)


@pytest.mark.parametrize("choice", batch_norm_kernel.CHOICES)
def test_every_tuning_choice_of_batch_norm(monkeypatch, choice):
    """With four parts of the positions, of which the last is short."""
    monkeypatch.setattr(batch_norm_kernel, "PROGRAMS", 8)
    for name in ("moments", "normalise", "gradient_sums", "gradient"):
        monkeypatch.setattr(batch_norm_kernel, name, functools.partial(getattr(batch_norm_kernel, name), choice=choice))
    inputs = _norm_inputs((3, 20, 4, 70), True)
    compare(lambda *x: batch_norm_relu(*x[:3], 1e-3, x[3], backend=x[4]), torch.float32, *inputs, slack=3)


def test_batch_norm_of_constant_channels_and_of_a_turned_map():
    x, weight, bias = (value.float().to(DEVICE) for value in _norm_inputs((2, 4, 3, 8), False))
    run = lambda x: batch_norm_relu(x, weight, bias, 1e-3, relu=False, backend="triton")  # noqa: E731
    constant, mean, variance = run(torch.full_like(x, 3e4))
    torch.testing.assert_close(constant, bias.expand_as(x))
    assert (float(mean.min()), float(mean.max()), float(variance.abs().max())) == (3e4, 3e4, 0)
    turned = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert_equal(outputs_and_gradients(run, turned), outputs_and_gradients(run, x), 0)


def test_batch_norm_where_the_mean_is_a_thousand_deviations():
    """Sums of squares would keep no digit of the variance."""
    x = (1000 + _randn(2, 12, 12, 8)).float().to(DEVICE)
    ones = torch.ones(8, device=DEVICE)
    *_, variance = batch_norm_relu(x, ones, ones, 1e-3, backend="triton")
    torch.testing.assert_close(variance.double(), x.double().var((0, 1, 2), unbiased=False), rtol=1e-4, atol=0)


@pytest.mark.parametrize("added", [True, False])
def test_batch_norm_over_ranks_is_that_of_one_batch(added):
    """Two ranks of unequal size, one after another; what each tells the other is repeated until it no longer moves."""
    x, weight, bias, *residual = (value.float().to(DEVICE) for value in _norm_inputs((5, 3, 3, 8), added))
    sent_back = _randn(5, 3, 3, 8).float().to(DEVICE)
    told = {}
    for _ in range(3):
        found = []
        for rank, rows in enumerate((slice(0, 2), slice(2, 5))):
            calls = iter(("forward", "backward"))

            def gather(row_1K, rank=rank, calls=calls):
                call = next(calls)
                told[call, rank] = row_1K
                return torch.cat([told.get((call, other), row_1K) for other in range(2)])

            parts = [value[rows].clone().requires_grad_() for value in (x, *residual)]
            learned = [value.clone().requires_grad_() for value in (weight, bias)]
            y, *_ = batch_norm_relu(parts[0], *learned, 1e-3, *parts[1:], gather=gather, backend="triton")
            found.append((y, torch.autograd.grad(y, (*parts, *learned), sent_back[rows])))
    whole = [value.double().requires_grad_() for value in (x, *residual, weight, bias)]
    y, *_ = batch_norm_relu(whole[0], *whole[-2:], 1e-3, *whole[1:-2], backend="reference")
    expected = torch.autograd.grad(y, whole, sent_back.double())
    (first, first_gradients), (second, second_gradients) = found
    maps = [torch.cat(pair) for pair in zip(first_gradients[:-2], second_gradients[:-2], strict=True)]
    sums = [a + b for a, b in zip(first_gradients[-2:], second_gradients[-2:], strict=True)]
    result = [torch.cat([first, second]).detach(), *maps, *sums]
    assert_equal([value.double() for value in result], [y.detach(), *expected], 3 * TOLERANCE[torch.float32])


def test_batch_norm_refuses_a_second_derivative():
    x, weight, bias = (value.float().to(DEVICE).requires_grad_() for value in _norm_inputs((2, 2, 2, 8), False))
    y, *_ = batch_norm_relu(x, weight, bias, 1e-3, backend="triton")
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def _alone(op):
    return lambda f, m, a, k, _, beta, backend: op(f, m, a, k, beta, backend=backend)


ALIGN = {"align": align, "soft_align": _alone(soft_align), "align_distance": _alone(align_distance)}
KINDS = ("usual", "repeated", "empty", "same", "dead", "constant", "zero mask")
SHAPES = [(4, 9, 8), (4, 17, 24), (4, 33, 72)]  # images, positions, channels: odd, more than a block in each


def _alignment(kind, *shape):
    """Features, mask, anchors, and other negatives than positives."""
    f, m, a, k = alignment_case(kind, torch.float64, *shape)
    return [x.to(DEVICE) for x in (f, m, a, k, (k + a + 1) % len(f))]


@pytest.mark.parametrize("op", ALIGN)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_alignment(op, dtype, kind):
    f, m, *rows = _alignment(kind)
    compare(lambda f, backend: ALIGN[op](f, m.to(f), *rows, 5.0, backend), dtype, f, slack=SUBTRACTS)


@pytest.mark.parametrize("op", ALIGN)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_alignment_of_odd_shapes(op, dtype, shape):
    f, m, *rows = _alignment("repeated", *shape)
    rows = [x[:3] for x in rows]  # an anchor twice, a target three times; all six pairs are in test_alignment
    compare(lambda f, backend: ALIGN[op](f, m.to(f), *rows, 20.0, backend), dtype, f, slack=SUBTRACTS)


@pytest.mark.parametrize("length", [150, 210])
def test_maps_of_two_row_blocks_and_of_several_tiles(length):
    f, m, *rows = _alignment("repeated", 3 if GPU else 2, length, 16)
    rows = [x[:2].clamp(max=len(f) - 1) for x in rows]
    compare(lambda f, backend: align(f, m.to(f), *rows, 20.0, backend), torch.float16, f, slack=SUBTRACTS)


@pytest.mark.parametrize(
    ("choice", "length"),
    [("kept weights", 33), ("one program", 33), ("one program", 150), ("no kept weights", 33), ("small rows", 33)],
)
def test_every_form_of_the_half_kernels(choice, length, monkeypatch):
    """Forms that only large channels or other GPUs choose, on shapes that the interpreter can do."""
    from kernels.alignment import kernel

    first = kernel.CHOICES[0]
    small = {name: getattr(first, name)._replace(summed=16) for name in ("scores", "quadratic", "gram", "gradient")}
    small["gradient"] = small["gradient"]._replace(columns=16)
    parts = {"kept weights": 2, "one program": 1}.get(choice, 0)
    tried = first._replace(**small, warp=Tile(16, 16, 4, 2, parts), rows=32 if choice == "small rows" else first.rows)
    monkeypatch.setattr(kernel, "CHOICES", (tried,))
    f, m, *rows = _alignment("repeated", 4, length, 64)
    rows = rows if length == 33 else [x[:2] for x in rows]
    compare(lambda f, backend: align(f, m.to(f), *rows, 20.0, backend), torch.float16, f, slack=SUBTRACTS)


def _strided(x):
    """The same numbers in every second place of a longer tensor."""
    return torch.stack([x, torch.full_like(x, 1)], dim=1)[:, 0]


def test_pair_rows_and_parameters_that_are_not_contiguous():
    f, m, a, k, n = _alignment("usual")
    f = f.half()
    same = torch.zeros(1, dtype=torch.int64, device=DEVICE).expand(len(a))  # one anchor for all pairs
    for anchor in (a, same):

        def run(x, *rows):
            return align(x, m.half(), *rows, 5.0, backend="triton")

        rows = anchor, k, n
        expected = outputs_and_gradients(lambda x, rows=rows: run(x, *(row.contiguous() for row in rows)), f)
        strided = (anchor if anchor is same else _strided(a), _strided(k), _strided(n))
        assert_equal(outputs_and_gradients(lambda x, rows=strided: run(x, *rows), f), expected, 0)
    x, weight, bias = (value.float().to(DEVICE) for value in _norm_inputs((2, 4, 3, 8), False))
    found = batch_norm_relu(x, _strided(weight), bias[:1].expand(8), 1e-3, backend="triton")
    assert_equal(list(found), list(batch_norm_relu(x, weight, bias[:1].repeat(8), 1e-3, backend="triton")), 0)


def _shifted(x):
    """The same tensor, contiguous, one element after an address that is a multiple of 16."""
    moved = torch.zeros(x.numel() + 1, dtype=x.dtype, device=x.device)[1:].view(x.shape)
    return moved.copy_(x.detach())


def _sent_back(op, f, m, rows, sent_back):
    """Outputs and gradient of an alignment where `sent_back` is the gradient of the reconstruction."""
    x = f.requires_grad_()
    result = ALIGN[op](x, m.half(), *rows, 5.0, "triton")
    outputs = [y for y in (result if isinstance(result, tuple) else (result,)) if y.requires_grad]
    grads = [sent_back if y.shape == sent_back.shape else torch.ones_like(y) for y in outputs]
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, x, grads)]


@pytest.mark.parametrize("op", ALIGN)
def test_an_alignment_at_an_odd_address(op):
    """A tensor descriptor of the backward begins at a multiple of 16 bytes; a map and its gradient need not.

    The launches of the aligned map, which loads 16 bytes at once, must not be used again for the other.
    """
    f, m, *rows = _alignment("usual", 3, 9, 64)
    rows = [x[:3] for x in rows]
    f = f.half()
    sent_back = _randn(len(rows[0]), *f.shape[1:]).to(f)
    aligned = _sent_back(op, f.clone(), m, rows, sent_back)
    shifted = _sent_back(op, _shifted(f), m, rows, _shifted(sent_back))
    assert_equal(shifted, aligned, TOLERANCE[torch.float16] if GPU else 0)


@pytest.mark.parametrize("op", ALIGN)
def test_remembered_launches_compute_what_tritons_own_do(op):
    """The second call is made from memory on a GPU; the interpreter remembers nothing."""
    f, m, *rows = _alignment("usual", 3, 17, 64)
    rows = [x[:3] for x in rows]
    f = f.half()
    sent_back = _randn(len(rows[0]), *f.shape[1:]).to(f)
    run = functools.partial(_sent_back, op, f, m, rows, sent_back)
    run()
    remembered = run()
    with triton_launches():
        assert_equal(remembered, run(), 0)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter's NumPy, of NaN
@pytest.mark.parametrize("parts", [1, 2])
def test_a_pair_outside_the_batch_leaves_the_others_alone(parts):
    """Below the check of the rows, which a GPU does not make, where one program or two share a pair."""
    from kernels.alignment import kernel

    f, m, a, k, n = _alignment("usual", 4, 9, 128)
    f, m = f.half(), m.float()
    choice = kernel.CHOICES[0]._replace(warp=kernel.CHOICES[0].warp._replace(parts=parts))
    wrong = torch.where(a == 1, len(f), k)
    good, bad = (kernel.forward(f, m, a, target, n, 5.0, choice) for target in (k, wrong))
    for whole, found in zip(good[:3], bad[:3], strict=True):
        others = a != (1 if found is not bad[2] else -1)
        assert_equal([found[others]], [whole[others]], 0)
    assert bad[1][a == 1].isnan().all()
    sent_back = torch.ones_like(good[0]), torch.ones_like(good[1]), torch.ones_like(good[2])
    gradient = kernel.backward(*sent_back, f, m, a, wrong, n, 5.0, bad[0], *bad[4:], choice)
    assert not gradient.isnan().any()


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != torch.float32])
@pytest.mark.parametrize("apart", [0.1, 0.01])
def test_half_distances_where_the_target_is_near(dtype, apart):
    """Every target vector is within `apart` of the anchor's: weights that sum to 1 only before rounding would show."""
    draw = torch.Generator().manual_seed(3)
    base = torch.rand(1, 1, 256, generator=draw, dtype=torch.float64)
    f = (base + apart * torch.rand(2, 20, 256, generator=draw, dtype=torch.float64)).to(DEVICE, dtype)
    m = torch.ones(2, 20, device=DEVICE)
    row = torch.tensor([0], device=DEVICE)
    exact = align_distance(f.double(), m.double(), row, row + 1, 5.0, backend="reference")
    for found in (
        soft_align(f, m, row, row + 1, 5.0, backend="triton")[1],
        align_distance(f, m, row, row + 1, 5.0, backend="triton"),
    ):
        assert float(((found.double() - exact) / exact).abs().max()) < 1e-3


def _plain(features, mask, anchor, positive, negative, _beta, _backend):
    reconstruction, near, _ = plain_soft_align(features, mask, anchor, positive)
    return reconstruction, near, plain_align_distance(features, mask, anchor, negative)


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != torch.float32])
@pytest.mark.parametrize("apart", [1.0, 0.1, 0.01])
def test_an_alignment_has_at_most_twice_plain_pytorchs_error(dtype, apart):
    """The usual formulas under autocast, also where all maps are within `apart` of one."""
    draw = torch.Generator().manual_seed(0)
    common, own = torch.rand(1, 33, 64, generator=draw), torch.rand(4, 33, 64, generator=draw)
    f = (own if apart == 1 else common + apart * own).to(DEVICE, dtype)
    m, anchor = feature_mask(f.double()), torch.arange(4, device=DEVICE)
    rows = anchor, anchor.roll(1), anchor.roll(2)

    def results(op, x, backend):
        mask = m if x.dtype == torch.float64 else m.float()
        return outputs_and_gradients(lambda x: op(x, mask, *rows, 50.0, backend)[:3], x)

    exact = results(align, f.double(), "reference")
    ours, usual = (results(op, f, "triton") for op in (align, _plain))
    for mine, plain, right in zip(ours, usual, exact, strict=True):
        assert (mine.double() - right).abs().max() <= 2 * (plain.double() - right).abs().max()


def test_a_pair_outside_the_batch_gives_nan_and_no_fault():
    f, m, a, k, n = _alignment("usual")
    if GPU:
        outputs = align(f.half(), m.half(), a, k, torch.full_like(n, len(f)), 5.0, backend="triton")
        assert outputs[2].isnan().all()
        assert not outputs[1].isnan().any()
    else:
        with pytest.raises(ValueError, match="_N: "):
            align(f.half(), m.half(), a, k, torch.full_like(n, len(f)), 5.0, backend="triton")
