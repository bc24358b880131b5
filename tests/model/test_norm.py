"""The batch norm: as PyTorch's on one rank, as one process on two, and passes that leave running statistics alone."""

import copy

import pytest
import torch
from torch import nn

from tacaf.model.norm import BatchNorm1d, BatchNorm2d, own_statistics
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
    return {name: value.clone() for name, value in module.named_buffers()}


@pytest.mark.parametrize("mode", ["sync", "local"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("ours", "theirs", "shape"), CASES)
def test_on_one_rank_it_is_the_usual_norm(ours, theirs, shape, training, mode):
    norm, usual = pair(ours, theirs, mode)
    features = torch.randn(shape)
    assert torch.equal(norm.train(training)(features), usual.train(training)(features))
    torch.testing.assert_close(norm.state_dict(), usual.state_dict())


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
    assert int(inner.num_batches_tracked) == 0
    assert torch.equal(inner.running_mean, torch.zeros(3))
    model(features)
    assert int(inner.num_batches_tracked) == 1
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
