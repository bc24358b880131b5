"""batch_norm_relu: the definition against PyTorch's own layers, over ranks, bad input. Kernel: triton_cases.py."""

import pytest
import torch
import torch.nn.functional as F

from kernels.batch_norm import batch_norm_relu
from tests.kernels.cases import assert_equal, outputs_and_gradients


def _inputs(shape=(3, 4, 5, 6), dtype=torch.float64):
    """Features whose mean is far from 0, weight, bias, residual."""
    draw = torch.Generator().manual_seed(4)
    features, residual = torch.randn(2, *shape, generator=draw, dtype=torch.float64)
    weight, bias = torch.rand(2, shape[3], generator=draw, dtype=torch.float64)
    return [x.to(dtype) for x in (5 + 2 * features, weight + 0.5, bias - 0.5, residual)]


def _usual(x, weight, bias, residual, relu):
    y = F.batch_norm(x.permute(0, 3, 1, 2), None, None, weight, bias, training=True, eps=1e-3).permute(0, 2, 3, 1)
    y = y if residual is None else y + residual
    return y.relu() if relu else y


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("added", [True, False])
def test_the_definition_is_pytorchs_norm_sum_and_relu(relu, added):
    inputs = _inputs()[: 3 + added]
    run = lambda x, w, b, r=None: batch_norm_relu(x, w, b, 1e-3, r, relu)  # noqa: E731
    y, mean, variance, *gradients = outputs_and_gradients(run, *inputs)
    expected = outputs_and_gradients(lambda x, w, b, r=None: _usual(x, w, b, r, relu), *inputs)
    assert_equal([y, *gradients], expected, 1e-12)
    torch.testing.assert_close(mean, inputs[0].mean((0, 1, 2)))
    torch.testing.assert_close(variance, inputs[0].var((0, 1, 2), unbiased=False))


def test_gradcheck_of_the_definition():
    inputs = [x.requires_grad_() for x in _inputs((2, 2, 2, 3))]
    run = lambda x, w, b, r: batch_norm_relu(x, w, b, 1e-3, r, backend="reference")[0]  # noqa: E731
    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_maps_have_float32_statistics_even_under_autocast(dtype):
    x, weight, bias, residual = _inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, mean, variance = batch_norm_relu(x.to(dtype), weight.float(), bias.float(), 1e-3, residual.to(dtype))
    assert [v.dtype for v in (y, mean, variance)] == [dtype, torch.float32, torch.float32]
    torch.testing.assert_close(mean.double(), x.to(dtype).double().mean((0, 1, 2)), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"features_BHWC": torch.rand(2, 3, 4)}, ValueError, r"features_BHWC: .*\(2, 3, 4\)"),
        ({"features_BHWC": torch.rand(2, 3, 4, 0)}, ValueError, r"features_BHWC: .*\(2, 3, 4, 0\)"),
        ({"features_BHWC": torch.rand(1, 1, 1, 6)}, ValueError, "features_BHWC: .* got 1;"),
        ({"features_BHWC": torch.ones(2, 3, 4, 6, dtype=torch.int64)}, TypeError, r"features_BHWC: .*int64"),
        ({"weight_C": torch.rand(5)}, ValueError, "weight_C: .* 6 .* got 5"),
        ({"bias_C": torch.rand(7)}, ValueError, "bias_C: .* 6 .* got 7"),
        ({"residual_BHWC": torch.rand(2, 3, 4, 5)}, ValueError, r"residual_BHWC: .*\(2, 3, 4, 5\)"),
        ({"residual_BHWC": torch.rand(2, 3, 4, 6).half()}, TypeError, "residual_BHWC: .*float32.*float16"),
        ({"eps": 0.0}, ValueError, r"eps: .*0\.0"),
        ({"eps": None}, TypeError, "eps: .*NoneType"),
        ({"backend": "fast"}, ValueError, "backend: .*'fast'"),
        ({"backend": "triton"}, ValueError, 'backend: .*"triton", got CPU'),
    ],
)
def test_bad_input_is_refused(change, kind, says):
    usual = {"features_BHWC": torch.rand(2, 3, 4, 6), "weight_C": torch.rand(6), "bias_C": torch.rand(6), "eps": 1e-3}
    with pytest.raises(kind, match=says):
        batch_norm_relu(**(usual | change))
