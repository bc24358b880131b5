"""The custom ops: when they run, opcheck, one graph under torch.compile, and a refusal of the second derivative."""

import warnings

import pytest
import torch

from kernels.alignment import align, align_distance, soft_align
from kernels.gem_pyramid import gem_pyramid
from kernels.ring_aggregate import ring_aggregate
from tacaf.checkout import ROOT
from tests.kernels.cases import CustomOps, alignment_case, assert_equal, outputs_and_gradients


def _cases():
    """name -> (inputs that take a gradient, the public op on them, the arguments of the custom op)."""
    f, m, a, k = alignment_case("repeated", torch.float32)
    u, theta, phi = torch.rand(3, 2, 6, 4, generator=torch.Generator().manual_seed(1))
    return {
        "align": ((f,), lambda f: align(f, m, a, k, a, 50.0), (f, m, a, k, a, 50.0, "plain")),
        "soft_align": ((f,), lambda f: soft_align(f, m, a, k, 50.0), (f, m, a, k, a[:0], 50.0, "plain")),
        "align_distance": ((f,), lambda f: align_distance(f, m, a, k, 50.0), (f, m, a, a[:0], k, 50.0, "plain")),
        "ring_aggregate": ((u, theta, phi), lambda *x: ring_aggregate(*x, 2), (u, theta, phi, 2, "plain")),
        "gem_pyramid": (
            (f.view(4, 3, 3, 8),),
            lambda x: gem_pyramid(x, (1, 3), 3.0, 1e-6),
            (f.view(4, 3, 3, 8), [1, 3], 3.0, 1e-6, "plain"),
        ),
    }


OPS = ("align", "soft_align", "align_distance", "ring_aggregate", "gem_pyramid")
CUSTOM = {"soft_align": "align", "align_distance": "align"}  # public functions of the same custom op


@pytest.mark.parametrize("name", OPS)
def test_opcheck(name):
    leaves, _, arguments = _cases()[name]
    # custom ops hand out every output with requires_grad; the leaves alone ask for it, as in training
    arguments = tuple(x.detach().clone().requires_grad_() if any(x is y for y in leaves) else x for x in arguments)
    torch.library.opcheck(getattr(torch.ops.kernels, CUSTOM.get(name, name)).default, arguments)


@pytest.mark.parametrize("name", OPS)
def test_the_custom_op_is_for_those_who_look(name):
    """A plain call takes the short way: no custom op, the same results. Under a mode, each pass is one operator."""
    leaves, op, _ = _cases()[name]
    with torch.profiler.profile(acc_events=True) as profile:
        short = outputs_and_gradients(op, *leaves)
    assert not [event.name for event in profile.events() if event.name.startswith("kernels::")]
    with CustomOps() as ran:
        assert_equal(outputs_and_gradients(op, *leaves), short, 0)
    custom = CUSTOM.get(name, name)
    assert ran.names == {f"kernels::{custom}", f"kernels::{custom}_backward"}


class NoGradient(torch.autograd.Function):
    """Passes its input on, and gives it no gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


@pytest.mark.parametrize("name", OPS)
def test_a_result_that_gets_no_gradient_passes_none_on(name):
    leaves, op, _ = _cases()[name]
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    out = op(*leaves)
    NoGradient.apply(out[0] if isinstance(out, tuple) else out).sum().backward()
    for leaf in leaves:
        assert leaf.grad is None or not leaf.grad.any()


def test_vmap_takes_the_custom_op():
    x = torch.rand(3, 2, 6, 3, 8, generator=torch.Generator().manual_seed(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch has no rule for a batch of custom ops, and says that it loops
        found = torch.func.vmap(lambda each: gem_pyramid(each, (1, 3), 3.0, 1e-6))(x)
    torch.testing.assert_close(found, torch.stack([gem_pyramid(each, (1, 3), 3.0, 1e-6) for each in x]))


@pytest.mark.parametrize("name", OPS)
def test_one_graph_under_compile(name):
    torch._dynamo.reset()
    leaves, op, _ = _cases()[name]
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    assert_equal(outputs_and_gradients(compiled, *leaves), outputs_and_gradients(op, *leaves), 1e-6)


@pytest.mark.parametrize("name", OPS)
def test_a_compiled_call_runs_the_kernel(name):
    torch._dynamo.reset()
    leaves, op, _ = _cases()[name]
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph.code)
        return graph

    torch.compile(op, fullgraph=True, backend=keep)(*leaves)
    (code,) = graphs
    assert f"torch.ops.kernels.{CUSTOM.get(name, name)}" in code


@pytest.mark.parametrize("package", ["kernels", "tacaf"])
def test_no_code_asks_whether_a_graph_is_exported_as_dynamo_mistook_it(package):
    """In torch 2.11, `is_exporting()` is true in every compiled function, which then ran the definitions."""
    for path in (ROOT / package).rglob("*.py"):
        assert "is_exporting()" not in path.read_text().replace("`is_exporting()`", ""), path


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_call_is_the_definition(strict):
    class Pool(torch.nn.Module):
        def forward(self, x):
            return gem_pyramid(x, (1, 3), 3.0, 1e-6)

    program = torch.export.export(Pool(), (torch.rand(2, 6, 3, 8),), strict=strict)
    assert not [node for node in program.graph.nodes if "kernels" in str(node.target)]


@pytest.mark.parametrize("name", OPS)
def test_double_backward_is_refused(name):
    leaves, op, _ = _cases()[name]
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    out = op(*leaves)
    first = torch.autograd.grad(
        (out[0] if isinstance(out, tuple) else out).square().sum(), leaves[0], create_graph=True
    )
    with pytest.raises(RuntimeError, match=f'kernels.{CUSTOM.get(name, name)}: .*"reference"'):
        first[0].sum().backward()
