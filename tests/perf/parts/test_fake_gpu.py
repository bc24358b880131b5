"""The fake GPU keeps the rules that a CPU can check, and leaves nothing behind."""

import pytest
import torch
import triton
import triton.language as tl

from perf.parts.fake_gpu import fake_gpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")


def test_tensors_on_cuda_are_on_the_cpu():
    with fake_gpu():
        assert torch.cuda.is_available()
        tensor = torch.randn(3, device="cuda")
        placed = (tensor, tensor.to("cuda:0"), tensor.cuda(), torch.zeros(1, device=torch.device("cuda", 0)))
        assert {one.device.type for one in placed} == {"cpu"}
    assert not torch.cuda.is_available()
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(1, device="cuda")


def test_nothing_waits_for_the_device_while_a_graph_is_captured():
    with fake_gpu():
        side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        with pytest.raises(RuntimeError, match="preceding successful capture"):
            graph.replay()
        with torch.cuda.graph(graph, stream=side):
            assert torch.cuda.current_stream() is side
            with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
                torch.cuda.synchronize()
        graph.replay()
        assert torch.cuda.current_stream() is torch.cuda.default_stream()


def test_a_capture_changes_nothing_and_a_replay_computes_anew_in_the_same_memory():
    norm, source = torch.nn.BatchNorm1d(3), torch.randn(4, 3)
    expected = torch.nn.BatchNorm1d(3)
    with fake_gpu():
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            source.mul_(2)
            found = norm(source) + 1
        first = source.clone()
        assert found.isnan().all()
        assert norm.num_batches_tracked == 0
        assert norm.running_mean.eq(0).all(), "its operator says nothing of writing there"
        for count in (1, 2):
            graph.replay()
            assert torch.equal(source, first * 2**count)
            assert torch.equal(found, expected(source) + 1)
            assert torch.equal(norm.running_var, expected.running_var)
            assert norm.num_batches_tracked == count


def test_no_value_is_read_while_a_graph_is_captured():
    with fake_gpu():
        graph = torch.cuda.graph(torch.cuda.CUDAGraph())
        with pytest.raises(RuntimeError, match="not permitted when stream is capturing"), graph:
            torch.ones(2).sum().item()
        assert torch.ones(2).sum().item() == 2


@triton.jit
def double(p_x, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(p_x + i, 2 * tl.load(p_x + i, mask=i < n), mask=i < n)


@pytest.mark.slow
def test_kernels_are_compiled_and_not_run():
    values = torch.ones(9)
    with fake_gpu():
        compiled = double[(1,)](values, 9, 16, enable_fp_fusion=True)
        assert "sm_90" in compiled.asm["ptx"]
        with pytest.raises(triton.CompilationError):
            double[(1,)](values, 9, 15, enable_fp_fusion=True)  # a block that is no power of two
    assert values.sum() == 9
