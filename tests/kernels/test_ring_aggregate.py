"""ring_aggregate: the definition against explicit loops, the CPU path against the definition, bad input."""

import math

import pytest
import torch

from kernels.ring_aggregate import ring_aggregate
from tests.kernels.cases import assert_equal, outputs_and_gradients


def _case(images=3, parts=6, width=5, projection=4, dtype=torch.float64):
    draw = torch.Generator().manual_seed(3)
    sizes = ((images, parts, width), (images, parts, projection), (images, parts, projection))
    return [torch.randn(*size, generator=draw, dtype=torch.float64).to(dtype) for size in sizes]


def _loops(u, weight_theta, weight_phi, rounds):
    """Method §5.2 with scalars, projecting anew in every round."""
    u = u.tolist()
    for _ in range(rounds):
        project = lambda w, x: [sum(a * b for a, b in zip(row, x, strict=True)) for row in w]  # noqa: E731
        theta = [project(weight_theta, x) for x in u]
        phi = [project(weight_phi, x) for x in u]
        new = []
        for i in range(len(u)):
            ring = (i, (i - 1) % len(u), (i + 1) % len(u))
            score = [sum(a * b for a, b in zip(theta[i], phi[j], strict=True)) / math.sqrt(len(phi[0])) for j in ring]
            weight = [math.exp(s) for s in score]
            new.append(
                [sum(w * u[j][d] for w, j in zip(weight, ring, strict=True)) / sum(weight) for d in range(len(u[0]))]
            )
        u = new
    return u


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize(("parts", "rounds"), [(3, 1), (3, 4), (4, 2), (6, 2), (7, 5)])
def test_against_explicit_loops_that_project_every_round(backend, parts, rounds):
    u, _, _ = _case(parts=parts)
    theta, phi = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found = ring_aggregate(u, u @ theta.T, u @ phi.T, rounds, backend=backend)
    expected = torch.tensor([_loops(x, theta.tolist(), phi.tolist(), rounds) for x in u], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_gradcheck_of_the_reference():
    inputs = [x.requires_grad_() for x in _case(images=2, parts=4, width=2, projection=3)]
    assert torch.autograd.gradcheck(lambda *x: ring_aggregate(*x, 3, backend="reference"), inputs)


@pytest.mark.parametrize(("parts", "rounds"), [(3, 1), (3, 3), (6, 1), (6, 2), (8, 6)])
def test_cpu_path_equals_the_definition(parts, rounds):
    inputs = _case(parts=parts)
    found, expected = (
        outputs_and_gradients(lambda *x, b=b: ring_aggregate(*x, rounds, backend=b), *inputs)
        for b in ("auto", "reference")
    )
    assert_equal(found, expected, 1e-12)


def test_mixed_dtypes_of_autocast():
    u, theta, phi = _case(dtype=torch.float32)
    for backend in ("auto", "reference"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = outputs_and_gradients(
                lambda *x, b=backend: ring_aggregate(*x, 2, backend=b), u, theta.bfloat16(), phi.bfloat16()
            )
        assert [x.dtype for x in found] == [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16]
        exact = ring_aggregate(u.double(), theta.bfloat16().double(), phi.bfloat16().double(), 2, backend="reference")
        torch.testing.assert_close(found[0].double(), exact, rtol=1e-5, atol=1e-5)
    assert ring_aggregate(u.bfloat16(), theta, phi, 2).dtype == torch.bfloat16


def test_an_empty_batch():
    inputs = [x[:0].requires_grad_() for x in _case()]
    out = ring_aggregate(*inputs, 2)
    out.sum().backward()
    assert out.shape == (0, 6, 5)
    assert inputs[1].grad.shape == (0, 6, 4)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"parts_BRD": torch.rand(3, 6)}, ValueError, r"parts_BRD: .*\(3, 6\)"),
        ({"parts_BRD": torch.rand(3, 2, 5)}, ValueError, "parts_BRD: .*got 2"),
        ({"parts_BRD": torch.ones(3, 6, 5, dtype=torch.int64)}, TypeError, "parts_BRD: .*int64"),
        ({"theta_BRA": torch.rand(3, 5, 4)}, ValueError, r"theta_BRA: .*\(3, 6, 4\)"),
        ({"phi_BRA": torch.rand(3, 6, 3)}, ValueError, r"phi_BRA: .*\(3, 6, 4\), got \(3, 6, 3\)"),
        ({"phi_BRA": torch.rand(3, 6, 4, device="meta")}, ValueError, "phi_BRA: .*cpu, got meta"),
        ({"rounds": 0}, ValueError, "rounds: .*got 0"),
        ({"rounds": 1.0}, TypeError, "rounds: .*float"),
        ({"backend": "fast"}, ValueError, "backend: .*'fast'"),
    ],
)
def test_bad_input(change, error, words):
    u, theta, phi = _case(dtype=torch.float32)
    with pytest.raises(error, match=words):
        ring_aggregate(**({"parts_BRD": u, "theta_BRA": theta, "phi_BRA": phi, "rounds": 2} | change))


def test_no_width_uses_a_tensor_core():
    """From 16 parts on, Triton turns a sum of products into a TF32 product, unless the exact one is asked for."""
    compile_report = pytest.importorskip("perf.compile_report")
    kernel = pytest.importorskip("kernels.ring_aggregate.kernel")
    inputs = [torch.empty(2, 16, width, device="meta") for width in (512, 128, 128)]
    launches = compile_report.caught(lambda: kernel.backward(inputs[0], *inputs, 2))
    launches += compile_report.caught(lambda: kernel.forward(*inputs, 2))
    assert len(launches) == 2
    for launched, arguments, options in launches:
        compiled, _ = compile_report.compiled_with_log(compile_report.source(launched, arguments), 90, options)
        assert compile_report.tensor_cores(compiled.asm["ptx"]) == "none", launched.__name__
