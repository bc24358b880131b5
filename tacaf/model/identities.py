"""Which identities a rank keeps of every split classifier, and which of them a training step uses.

B rows of this rank, G rows of all ranks, S identities of this rank's range that a step uses.
"""

from typing import NamedTuple

import torch

from tacaf import distributed
from tacaf.draws import Stream, chosen
from tacaf.interfaces import StepKey
from tacaf.transfer import to_device


class IdentityRange(NamedTuple):
    """The identities `start` to `stop - 1` of `identities`."""

    start: int
    stop: int
    identities: int

    @classmethod
    def of_rank(cls, identities: int, rank: int, ranks: int) -> "IdentityRange":
        """The ranges of all ranks follow one another, and their lengths differ by one at most."""
        return cls(rank * identities // ranks, (rank + 1) * identities // ranks, identities)


class StepIdentities(NamedTuple):
    """The identities that a step's classifiers use: all of the batch's, and some of the others."""

    place_S: torch.Tensor  # int64, ascending: their places in this rank's range
    total: torch.Tensor  # float64 scalar: how many all ranks use together


def step_identities(share: float, own: IdentityRange, label_B: torch.Tensor, key: StepKey) -> StepIdentities:
    """The identities of the batch, and each other one with probability `share`, on the device of `label_B`.

    Whether an identity is drawn depends on the key and the identity alone, so the set is the same for every number of
    ranks. All classifiers of a step use the same one. Every rank must call this, with equally many rows.
    """
    drawn = torch.from_numpy(chosen(share, own.start, own.stop, Stream.NEGATIVES, *key))
    label_G = distributed.gather_rows(label_B)
    here_G = (label_G >= own.start) & (label_G < own.stop)
    place_S = torch.cat([to_device(drawn, label_B.device), label_G[here_G]]).unique() - own.start
    count = torch.full((), len(place_S), dtype=torch.float64, device=label_B.device)
    return StepIdentities(place_S, distributed.sum_over_ranks(count))
