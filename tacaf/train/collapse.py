"""Notices that a network has collapsed, which means that it gives every image the same features.

All identities are then equally likely and every distance of the triplet is 0, so both losses have known values. None of
the four trainings in which this was seen recovered.
"""

import math

from tacaf.losses.total import LossConfig

STEPS = 20  # in a row
TOLERANCE = 1e-3  # relative to these values


class CollapseWatch:
    """Reads the losses of every step and returns one warning if the network has collapsed."""

    def __init__(self, config: LossConfig, identities: float) -> None:
        """`identities`: how many a step's classifiers use, on average."""
        self.values = {
            "identity": math.log(identities),
            "triplet": config.margin if config.triplet == "batch_hard" else math.log(2),  # log(1 + exp(0))
        }
        self._row = 0  # steps at these values
        self._said = False

    def step(self, epoch: int, terms: dict[str, float]) -> str | None:
        """A warning, or None. `terms` are the means over ranks. The first epoch does not count."""
        at_them = all(abs(terms[name] - value) <= TOLERANCE * value for name, value in self.values.items())
        self._row = self._row + 1 if at_them and epoch > 0 else 0
        if self._row < STEPS or self._said:
            return None
        self._said = True
        return (
            f"the network has collapsed: for {STEPS} steps, its losses have been those of the same features for all"
            f" images (identity {self.values['identity']:.3f}, triplet {self.values['triplet']:.3f}), and it is not"
            " likely to recover; stop the training and start it with loss.triplet_unit=distance, lower rates or a"
            " longer optim.warmup_epochs (see The network collapses in docs/troubleshooting.md)"
        )
