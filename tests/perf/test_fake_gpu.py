"""The fake GPU keeps the rules that a CPU can check, and leaves nothing behind."""

import pytest
import torch
import triton
import triton.language as tl

from perf.fake_gpu import fake_gpu

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


@triton.jit
def double(p_x, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(p_x + i, 2 * tl.load(p_x + i, mask=i < n), mask=i < n)


def test_kernels_are_compiled_and_not_run():
    values = torch.ones(9)
    with fake_gpu():
        compiled = double[(1,)](values, 9, 16, enable_fp_fusion=True)
        assert "sm_90" in compiled.asm["ptx"]
        with pytest.raises(triton.CompilationError):
            double[(1,)](values, 9, 15, enable_fp_fusion=True)  # a block that is no power of two
    assert values.sum() == 9
