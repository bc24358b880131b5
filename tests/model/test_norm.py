"""The batch norm: as PyTorch's on one rank, as one process on two, and passes that leave running statistics alone."""

import copy
import inspect
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from tacaf.model.norm import BatchNorm1d, BatchNorm2d, own_statistics
from tests.fake_gpu import DEVICE, Operators
from tests.model.cases import randomise_norms

CASES = [(BatchNorm1d, nn.BatchNorm1d, (8, 3)), (BatchNorm2d, nn.BatchNorm2d, (8, 3, 2, 5))]


def pair(ours, theirs, mode="sync"):
    """Ours and PyTorch's norm with the same parameters and running statistics."""
    torch.manual_seed(0)
    norm, usual = ours(3, mode), theirs(3)
    randomise_norms(norm)
    usual.load_state_dict(norm.state_dict())
    return norm, usual


def buffers(module):
    """All but the count of batches, which ours do not keep."""
    return {name: value.clone() for name, value in module.named_buffers() if name != "num_batches_tracked"}


@pytest.mark.parametrize("mode", ["sync", "local"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("ours", "theirs", "shape"), CASES)
def test_on_one_rank_it_is_the_usual_norm(ours, theirs, shape, training, mode):
    norm, usual = pair(ours, theirs, mode)
    features = torch.randn(shape)
    assert torch.equal(norm.train(training)(features), usual.train(training)(features))
    torch.testing.assert_close(buffers(norm), buffers(usual))
    assert norm.state_dict().keys() == usual.state_dict().keys()


@pytest.mark.parametrize("sizes", [(4, 4), (3, 5)])
@pytest.mark.parametrize(("ours", "theirs", "shape"), CASES)
def test_two_ranks_in_sync_are_one_process(two_ranks, ours, theirs, shape, sizes):
    norm, usual = pair(ours, theirs)
    features = (5 + torch.randn(shape)).requires_grad_()
    weights = torch.randn(shape)
    parts, replicas = features.split(sizes), [norm, copy.deepcopy(norm)]
    outputs = two_ranks(lambda rank: replicas[rank](parts[rank]))
    (found,) = torch.autograd.grad((torch.cat(outputs) * weights).sum(), features)
    expected_output = usual(features)
    (expected,) = torch.autograd.grad((expected_output * weights).sum(), features)
    torch.testing.assert_close(torch.cat(outputs), expected_output)
    torch.testing.assert_close(found, expected)
    for replica in replicas:
        torch.testing.assert_close(buffers(replica), buffers(usual))


# What PyTorch documents of its CUDA kernels for a norm over ranks, in plain tensors; a CPU has none of them.


def statistics_of(input, eps):
    dims = [0, *range(2, input.dim())]
    return input.float().mean(dims), (input.float().var(dims, unbiased=False) + eps).rsqrt()


def gathered_statistics(input, mean, invstd, running_mean, running_var, momentum, eps, counts):
    assert mean.is_contiguous()
    assert invstd.is_contiguous()
    share = (counts / counts.sum())[:, None]
    whole = (share * mean).sum(0)
    variance = (share * (invstd**-2 - eps + (mean - whole) ** 2)).sum(0)
    if running_mean is not None:
        running_mean.lerp_(whole, momentum)
        running_var.lerp_(variance * counts.sum() / (counts.sum() - 1), momentum)
    return whole, (variance + eps).rsqrt()


def spread(values, like):
    return values.view(1, -1, *[1] * (like.dim() - 2))


def normalised(input, weight, bias, mean, invstd, eps):
    unit = (input.float() - spread(mean, input)) * spread(invstd * weight, input)
    return (unit + spread(bias, input)).to(input.dtype)


def reduced(grad_out, input, mean, invstd, weight, input_g, weight_g, bias_g):
    dims = [0, *range(2, input.dim())]
    total = grad_out.float().sum(dims)
    along = (grad_out.float() * (input.float() - spread(mean, input))).sum(dims)
    return total, along, along * invstd if weight_g else torch.empty(0), total.clone() if bias_g else torch.empty(0)


def input_gradient(grad_out, input, mean, invstd, weight, sum_dy, sum_dy_xmu, count):
    assert count.dtype == torch.int32
    assert grad_out.stride() == input.stride(), "the kernel walks both in the order of the input"
    along = spread(invstd**2 * sum_dy_xmu / count.sum(), input) * (input.float() - spread(mean, input))
    less = grad_out.float() - spread(sum_dy / count.sum(), input) - along
    return (less * spread(invstd * weight, input)).to(input.dtype)


KERNELS = {
    "batch_norm_stats": statistics_of,
    "batch_norm_gather_stats_with_counts": gathered_statistics,
    "batch_norm_elemt": normalised,
    "batch_norm_backward_reduce": reduced,
    "batch_norm_backward_elemt": input_gradient,
}


@pytest.fixture
def gpu_kernels(monkeypatch):
    for name, plain in KERNELS.items():
        arguments = [argument.name for argument in getattr(torch.ops.aten, name).default._schema.arguments]
        assert arguments == list(inspect.signature(plain).parameters), "as PyTorch's own"
        monkeypatch.setattr(torch, name, plain)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("sizes", [(4, 4), (3, 5)])
@pytest.mark.parametrize(("ours", "theirs", "shape"), CASES)
def test_two_gpus_in_sync_are_one_process(two_ranks, gpu_kernels, ours, theirs, shape, sizes, layout, frozen):
    """The calls that a GPU gets, from its own rank's thread; backward too, whose sums meet there."""
    norm, usual = pair(ours, theirs)
    norm.bias.requires_grad_(not frozen)
    features, sent_back = 5 + torch.randn(shape), torch.randn(shape)
    whole = features.clone().requires_grad_()
    learned = (whole, usual.weight, usual.bias)
    expected_output = usual(whole)
    expected = torch.autograd.grad(expected_output, learned, sent_back)
    replicas, before = [norm, copy.deepcopy(norm)], buffers(norm)

    def work(rank):
        part = features.split(sizes)[rank]
        part = part.contiguous(memory_format=layout) if part.dim() == 4 else part.contiguous()
        part.requires_grad_()
        with own_statistics(replicas[rank]) if frozen else nullcontext():
            output = replicas[rank]._shared(part)
        wanted = [part, *(value for value in (replicas[rank].weight, replicas[rank].bias) if value.requires_grad)]
        return output, torch.autograd.grad(output, wanted, sent_back.split(sizes)[rank])

    (first, first_gradients), (second, second_gradients) = two_ranks(work)
    torch.testing.assert_close(torch.cat([first, second]), expected_output)
    torch.testing.assert_close(torch.cat([first_gradients[0], second_gradients[0]]), expected[0])
    for one, other, truth in zip(first_gradients[1:], second_gradients[1:], expected[1:], strict=False):
        torch.testing.assert_close(one + other, truth)
    for replica in replicas:
        torch.testing.assert_close(buffers(replica), before if frozen else buffers(usual))


def test_over_ranks_a_gpu_gets_its_kernels_and_a_cpu_plain_sums(two_ranks, gpu_kernels, monkeypatch):
    norm = BatchNorm1d(3, "sync").to(DEVICE)
    called = []
    monkeypatch.setattr(BatchNorm1d, "_shared", lambda self, features: called.append(features.device) or features)
    two_ranks(lambda _: norm(torch.empty(4, 3, device=DEVICE)))
    assert called == [DEVICE] * 2
    two_ranks(lambda _: BatchNorm1d(3, "sync")(torch.randn(4, 3)))
    assert len(called) == 2


@pytest.mark.parametrize("frozen", [False, True])
def test_one_gpu_runs_the_native_norm_alone(frozen):
    """Channels-last maps too: only on a CPU have they statistics of our own."""
    norm = BatchNorm2d(3, "sync").to(DEVICE)
    features = torch.empty(4, 3, 2, 5, device=DEVICE).contiguous(memory_format=torch.channels_last)
    with own_statistics(norm) if frozen else nullcontext(), Operators() as operators:
        norm(features)
    launched = [name for name in operators.computing if "empty" not in name]
    assert launched == ["aten.native_batch_norm.default"]


def test_local_ranks_keep_to_themselves(two_ranks):
    norm, usual = pair(BatchNorm1d, nn.BatchNorm1d, "local")
    halves, replicas = torch.randn(8, 3).split(4), [norm, copy.deepcopy(norm)]
    outputs = two_ranks(lambda rank: replicas[rank](halves[rank]))
    for output, half in zip(outputs, halves, strict=True):
        torch.testing.assert_close(output, copy.deepcopy(usual)(half))


def test_own_statistics_normalises_by_the_batch_and_remembers_nothing(two_ranks):
    norm, usual = pair(BatchNorm2d, nn.BatchNorm2d)
    halves, before = torch.randn(8, 3, 2, 5).split(4), buffers(norm)
    with own_statistics(norm):
        outputs = two_ranks(lambda rank: norm(halves[rank]))
    torch.testing.assert_close(torch.cat(outputs), usual(torch.cat(halves)))
    torch.testing.assert_close(buffers(norm), before, rtol=0, atol=0)


@pytest.mark.parametrize("how", ["leaves", "raises"])
def test_own_statistics_holds_inside_the_block_only(how):
    inner = BatchNorm1d(3, "sync")
    model, features = nn.Sequential(inner, nn.ReLU()), 5 + torch.randn(8, 3)
    expected = copy.deepcopy(model)(features)
    try:
        with own_statistics(model):
            torch.testing.assert_close(model(features), expected)
            if how == "raises":
                raise KeyError
    except KeyError:
        pass
    assert torch.equal(inner.running_mean, torch.zeros(3))
    model(features)
    assert (inner.running_mean > 0.1).all()


def test_channels_last_maps_on_a_cpu_are_as_exact_as_contiguous_ones():
    """PyTorch's own op is off by 5e-6 here; over a network's ReLUs that turned 1 % of a gradient."""
    torch.manual_seed(0)
    norm = BatchNorm2d(16, "sync")
    features = torch.randn(32, 16, 48, 24).contiguous(memory_format=torch.channels_last).requires_grad_()
    sent_back = torch.randn_like(features)
    found = norm(features)
    assert found.is_contiguous(memory_format=torch.channels_last)
    gradients = torch.autograd.grad(found, (features, norm.weight, norm.bias), sent_back)

    whole = nn.BatchNorm2d(16).double()
    values = features.detach().double().requires_grad_()
    expected = whole(values)
    wanted = torch.autograd.grad(expected, (values, whole.weight, whole.bias), sent_back.double())
    assert relative(found, expected) < 3e-7
    for gradient, truth in zip(gradients, wanted, strict=True):
        assert relative(gradient, truth) < 1e-5
    assert relative(norm.running_mean, whole.running_mean) < 1e-6
    assert relative(norm.running_var, whole.running_var) < 1e-6


def relative(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float(((found.double() - truth).norm() / truth.norm()).detach())


def usual_of(usual, features, residual, relu):
    result = usual(features)
    result = result if residual is None else result + residual
    return result.relu() if relu else result


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("ranks", [1, 2])
def test_fused_norm_sum_and_relu_are_the_usual_ones(request, ranks, relu, added, frozen):
    norm, usual = pair(BatchNorm2d, nn.BatchNorm2d)
    fused = BatchNorm2d(3, "sync", fused=True)
    fused.load_state_dict(norm.state_dict())
    features, residual = 5 + torch.randn(8, 3, 2, 5), torch.randn(8, 3, 2, 5)
    replicas, before = [fused, copy.deepcopy(fused)], buffers(fused)
    inputs = [value.requires_grad_() for value in ((features, residual) if added else (features,))]
    parts = list(zip(*(value.split(8 // ranks) for value in inputs), strict=True))

    def work(rank):
        with own_statistics(replicas[rank]) if frozen else nullcontext():
            return replicas[rank](*parts[rank], relu=relu)

    output = torch.cat(request.getfixturevalue("two_ranks")(work)) if ranks == 2 else work(0)
    expected_output = usual_of(usual, features, residual if added else None, relu)
    torch.testing.assert_close(output, expected_output)
    weights = torch.randn(output.shape)
    found = torch.autograd.grad((output * weights).sum(), inputs)
    expected = torch.autograd.grad((expected_output * weights).sum(), inputs)
    torch.testing.assert_close(found, expected)
    for replica in replicas[:ranks]:
        torch.testing.assert_close(buffers(replica), before if frozen else buffers(usual))


@pytest.mark.parametrize("fused", [False, True])
def test_evaluation_adds_and_cuts_too(fused):
    norm, usual = pair(BatchNorm2d, nn.BatchNorm2d)
    chosen = BatchNorm2d(3, "sync", fused=fused).eval()
    chosen.load_state_dict(norm.state_dict())
    features, residual = torch.randn(2, 4, 3, 2, 5)
    assert torch.equal(chosen(features, residual, relu=True), usual_of(usual.eval(), features, residual, True))


def test_fused_runs_its_own_op_in_training_and_pytorchs_under_a_compiler(monkeypatch):
    called = []

    def op(features_BHWC, weight_C, *_):
        called.append(features_BHWC.shape)
        return features_BHWC, weight_C.detach(), weight_C.detach()

    monkeypatch.setattr("tacaf.model.norm.batch_norm_relu", op)
    norm, features = BatchNorm2d(3, "sync", fused=True), torch.randn(4, 3, 2, 5)
    norm(features)
    assert called == [(4, 2, 5, 3)]
    torch.compile(norm, backend="eager", fullgraph=True)(features)
    norm.eval()(features)
    assert len(called) == 1
