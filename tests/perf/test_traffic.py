"""The count of what collective calls move into a rank."""

import pytest
import torch
import torch.distributed as dist

from perf.parts.traffic import Traffic


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_calls_are_counted_as_a_ring_of_four_moves_them(alone):
    values = torch.zeros(100)  # 400 bytes
    with Traffic(4) as traffic:
        dist.all_reduce(values)
        dist.all_gather([torch.zeros(100)], values)
        dist.broadcast(values, 0)
        dist.barrier()
        values.add_(1)
    assert traffic.bytes_by_call == {"allreduce_": 600, "allgather_": 300, "broadcast_": 400}
