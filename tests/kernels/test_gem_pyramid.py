"""gem_pyramid: the definition against explicit loops, the CPU path against the definition, bad input."""

import pytest
import torch

from kernels.gem_pyramid import gem_pyramid
from tests.kernels.cases import assert_equal, outputs_and_gradients


def _case(images=2, height=6, width=3, channels=4, dtype=torch.float64):
    """Signed values with exact zeros, as a map may hold."""
    x = torch.randn(images, height, width, channels, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x[:, :, 0] = 0
    return x.to(dtype)


def _loops(x, levels, p, eps):
    height, width, channels = len(x), len(x[0]), len(x[0][0])
    pooled = []
    for level in levels:
        for stripe in range(level):
            rows = range(stripe * height // level, (stripe + 1) * height // level)
            sums = [sum(max(x[h][w][c], eps) ** p for h in rows for w in range(width)) for c in range(channels)]
            pooled.append([(s / (len(rows) * width)) ** (1 / p) for s in sums])
    return pooled


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize(("levels", "p"), [((1,), 3.0), ((1, 3, 6), 3.0), ((1, 2, 6), 2.5), ((3, 1), 1.0), ((6,), 4.0)])
def test_against_explicit_loops(backend, levels, p):
    x = _case()
    expected = torch.tensor([_loops(image, levels, p, 1e-2) for image in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(gem_pyramid(x, levels, p, 1e-2, backend=backend), expected, rtol=1e-12, atol=1e-12)


def test_gradcheck_of_the_reference():
    x = (_case() + 0.011).requires_grad_()  # off the clamp's corner
    assert torch.autograd.gradcheck(lambda x: gem_pyramid(x, (1, 3, 6), 3.0, 1e-2, backend="reference"), x)


@pytest.mark.parametrize("p", [1.0, 2.0, 2.5, 3.0, 4.0, 5.5])
def test_cpu_path_equals_the_definition(p):
    found, expected = (
        outputs_and_gradients(lambda x, b=b: gem_pyramid(x, (1, 3, 6), p, 1e-2, backend=b), _case())
        for b in ("auto", "reference")
    )
    assert_equal(found, expected, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_map_of_zeros_is_safe(dtype):
    for backend in ("auto", "reference"):
        zeros = torch.zeros(2, 6, 3, 4, dtype=dtype)
        pooled, gradient = outputs_and_gradients(
            lambda x, b=backend: gem_pyramid(x, (1, 6), 3.0, 1e-6, backend=b), zeros
        )
        torch.testing.assert_close(pooled, torch.full((2, 7, 4), 1e-6), rtol=1e-4, atol=0)
        assert torch.equal(gradient, torch.zeros_like(zeros))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_are_pooled_in_float32_even_under_autocast(dtype):
    x = _case(dtype=dtype)
    exact = gem_pyramid(x.double(), (1, 3), 3.0, 1e-6, backend="reference")
    for backend in ("auto", "reference"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            pooled, gradient = outputs_and_gradients(
                lambda x, b=backend: gem_pyramid(x, (1, 3), 3.0, 1e-6, backend=b), x
            )
        assert (pooled.dtype, gradient.dtype) == (torch.float32, dtype)
        torch.testing.assert_close(pooled.double(), exact, rtol=1e-5, atol=1e-6)


def test_maps_in_channels_first_memory():
    x = _case()
    turned = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert not turned.is_contiguous()
    run = lambda x: gem_pyramid(x, (1, 3, 6), 3.0, 1e-2)  # noqa: E731
    assert_equal(outputs_and_gradients(run, turned), outputs_and_gradients(run, x), 1e-13)


def test_an_empty_batch():
    x = _case()[:0].requires_grad_()
    pooled = gem_pyramid(x, (1, 3), 3.0, 1e-6)
    pooled.sum().backward()
    assert pooled.shape == (0, 4, 4)
    assert x.grad.shape == x.shape


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"features_BHWC": torch.rand(2, 6, 3)}, ValueError, r"features_BHWC: .*\(2, 6, 3\)"),
        ({"features_BHWC": torch.rand(2, 6, 0, 4)}, ValueError, r"features_BHWC: .*\(2, 6, 0, 4\)"),
        ({"features_BHWC": torch.ones(2, 6, 3, 4, dtype=torch.int32)}, TypeError, "features_BHWC: .*int32"),
        ({"levels": (1, 4)}, ValueError, "levels: .* 6, got 4"),
        ({"levels": (0,)}, ValueError, "levels: .* 6, got 0"),
        ({"levels": ()}, ValueError, "levels: "),
        ({"levels": 3}, TypeError, "levels: .*got 3"),
        ({"levels": (1, 3.0)}, TypeError, r"levels: .*got \(1, 3\.0\)"),
        ({"levels": (True, 3)}, TypeError, r"levels: .*got \(True, 3\)"),
        ({"p": 0.0}, ValueError, r"^p: .*got 0\.0"),
        ({"p": "3"}, TypeError, "^p: .*got str"),
        ({"p": 40.0}, ValueError, r"eps: .*1e-06\^40\.0"),
        ({"eps": 0.0}, ValueError, r"eps: .*got 0\.0"),
        ({"backend": "fast"}, ValueError, "backend: .*'fast'"),
    ],
)
def test_bad_input(change, error, words):
    good = {"features_BHWC": _case(dtype=torch.float32), "levels": (1, 3), "p": 3.0, "eps": 1e-6}
    with pytest.raises(error, match=words):
        gem_pyramid(**(good | change))
