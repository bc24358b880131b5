"""launch/train.py with figures read late and one bad loss: python -m tests.train.odd_training LAG BAD ARGUMENTS...

LAG: how many steps later figures are read, as on a GPU. BAD: the step of the run whose loss is infinite, or -1.
"""

import sys

import torch

import launch.train
from tacaf.distributed import rank, world_size
from tacaf.interfaces import ModelOutput
from tacaf.losses.total import LossConfig, TacafLoss

LAG, BAD = int(sys.argv[1]), int(sys.argv[2])


class OneBadLoss(TacafLoss):
    """Infinite in the one step, on the last rank, with a gradient of zeros and not of NaN."""

    def __init__(self, config: LossConfig) -> None:
        super().__init__(config)
        self.calls = 0

    def __call__(self, output: ModelOutput, label_B: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, terms = super().__call__(output, label_B)
        self.calls += 1
        bad = self.calls == BAD + 1 and rank() == world_size() - 1
        return (0 * loss + torch.inf if bad else loss), terms


if __name__ == "__main__":
    launch.train.lag_of = lambda device: LAG
    launch.train.TacafLoss = OneBadLoss  # type: ignore[misc]
    sys.exit(launch.train.main(sys.argv[3:]))
