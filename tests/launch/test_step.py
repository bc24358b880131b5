"""What a training step asks of a GPU: how convolutions are chosen, and that the host never waits for it."""

import pytest
import torch

from launch.engine import choose_convolutions


@pytest.mark.parametrize("deterministic", [False, True])
def test_convolutions_are_the_fastest_or_reproducible(deterministic):
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False):
        choose_convolutions(deterministic)
        assert torch.backends.cudnn.deterministic is deterministic
        assert torch.backends.cudnn.benchmark is not deterministic
