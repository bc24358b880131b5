"""A step's figures, losses and gradient norm: first on the device of one rank, then gathered from all ranks."""

import math
from typing import NamedTuple

import numpy as np
import torch

from tacaf.interfaces import Batch
from tacaf.train.step import Computed
from tacaf.transfer import HostCopy

NORM = "gradient_norm"


class LaunchedStep(NamedTuple):
    """A step that has been launched completely; on a GPU it may still be running."""

    number: int  # steps of the run before it
    epoch: int
    step: int
    row_B: np.ndarray  # of the batch's images in the shard index
    rates: dict[str, float]
    wait_s: float  # for the batch
    names: tuple[str, ...]  # of the values: "loss", every term, and NORM after an update
    values: HostCopy


class StepFigures(NamedTuple):
    """The figures of a step on all ranks."""

    ranks: list[dict[str, float]]  # "loss" and every term, of each rank
    step_s: float  # of this rank's device, without evaluations and saves
    wait_share: float  # 0 to 1: of the host's time for the step, spent waiting for the batch; the largest of a rank
    peak_memory_mib: float  # the largest of a rank: resident on a CPU, allocated on a GPU

    @property
    def finite(self) -> bool:
        return all(math.isfinite(value) for losses in self.ranks for value in losses.values())

    @property
    def mean(self) -> dict[str, float]:
        """The mean over ranks, which equals the losses of the global batch because ranks have equal shares."""
        return {name: sum(losses[name] for losses in self.ranks) / len(self.ranks) for name in self.ranks[0]}


def launched(
    number: int, batch: Batch, rates: dict[str, float], computed: Computed, norm: torch.Tensor | None
) -> LaunchedStep:
    """Everything that will be logged about a step. This starts the copy of its losses and norm to the host."""
    names: tuple[str, ...] = ("loss", *computed.terms)
    figures_F = computed.figures_F
    if norm is not None:
        names, figures_F = (*names, NORM), torch.cat([figures_F, norm.reshape(1)])
    return LaunchedStep(
        number=number,
        epoch=batch.epoch,
        step=batch.step,
        row_B=batch.row_B.numpy(),
        rates=rates,
        wait_s=batch.wait_s,
        names=names,
        values=HostCopy(figures_F),
    )
