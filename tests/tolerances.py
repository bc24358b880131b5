"""How far apart two trainings may end that do the same arithmetic in another order.

Every test that compares trainings over ranks, ZeRO stages, pieces of a classifier or ways to update uses these bounds.
Where equality bit for bit is promised (a resumed run, for instance), tests compare bits and not with this file.

A sum in another order differs in its last bits, and how much of a parameter that is depends on its *update*, the way
it moved since the start, not on its value: a bias that begins at zero has little value, and its gradient is a small
rest of large terms that cancel. So a bound has three parts:

- `SHARE` of the parameter's own update. Rounding alone moves it by 1e-4 of that at most, but in fp32 it may also turn
  a tie the other way: the position that a max-pooling takes, a ReLU, a hardest negative. One such turn was seen to move
  one filter of the first convolution by 0.5 % of its update. A missing rank, a lost step or a sum in place of a mean
  moves a parameter by a third of its update or more, ten times the bound.
- `CANCELLED` of the whole model's update, for gradients that are nothing but the rest of a cancellation.
- `STORED` of the value: it is rounded to fp32 in every step.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

State = Mapping[str, torch.Tensor]

SHARE = 0.03
# AdamW divides by a gradient's own size, which blows up what little a turned tie changes: 0.07 seen three steps later.
ADAMW_SHARE = 0.2
CANCELLED = 1e-5
STORED = 1e-6
STATISTICS = 0.1  # of the share: a batch norm's mean in units of its standard deviation, and its variance
FIRST_LOSS = 1e-5  # of the loss, before any update: forward pass alone
LOSS = 1e-3  # of the loss, after updates
GRADIENT_NORM = 0.05  # of the norm; a turned tie was seen to move it by 2e-4, and by 6e-3 one AdamW step later


def update_of(start: State, end: State) -> float:
    """The 2-norm of all that moved: of every parameter in `start`."""
    return sum(_apart(start[name], end[name]) ** 2 for name in start) ** 0.5


def worst_difference(start: State, expected: State, found: State, share: float = SHARE) -> tuple[float, str]:
    """The largest difference of any tensor in units of its bound, and the tensor's name. Above 1 is another training.

    `start` holds the parameters before the first step; what only the other two hold are statistics of batch norms.
    """
    assert start.keys() <= expected.keys() == found.keys(), start.keys() ^ expected.keys() ^ found.keys()
    whole = update_of(start, expected)
    assert whole > 0, "nothing was trained"

    def bound(name: str) -> float:
        tensor = expected[name].double()
        if name in start:
            moved = _apart(start[name], tensor)
            return share * moved + CANCELLED * whole + STORED * tensor.norm().item()
        if name.endswith("running_mean"):  # it may be near zero; the spread around it is not
            tensor = expected[name.replace("running_mean", "running_var")].double().sqrt()
        return 0.0 if name.endswith("num_batches_tracked") else STATISTICS * share * tensor.norm().item()

    def difference(name: str) -> float:
        apart, most = _apart(expected[name], found[name]), bound(name)
        if apart != apart:  # not a number
            return float("inf")
        return apart / most if most else float("inf") if apart else 0.0

    return max((difference(name), name) for name in expected)


def assert_same_training(start: State, expected: State, found: State, share: float = SHARE) -> None:
    """Every parameter and every statistic of `found` is within its bound of `expected`."""
    ratio, name = worst_difference(start, expected, found, share)
    assert ratio <= 1, f"{name}: expected a difference within its bound, got {ratio:.3g} times the bound"


def assert_same_gradients(expected: State, found: State, share: float) -> None:
    """As `assert_same_training`, for one update of rate 1."""
    assert_same_training(
        {name: torch.zeros_like(gradient) for name, gradient in expected.items()}, expected, found, share
    )


def assert_same_losses(
    expected: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]], updated: bool = False
) -> None:
    """The step records of two runs have the same losses, terms and gradient norms.

    A term's unit is the whole loss: a hinge near zero is a small rest of large distances. With `updated`, the first of
    these steps already comes after an update.
    """
    for at, (one, other) in enumerate(zip(expected, found, strict=True)):
        most = (LOSS if updated or at else FIRST_LOSS) * abs(one["loss"])
        assert one["terms"].keys() == other["terms"].keys()
        for name, value in {"loss": one["loss"], **one["terms"]}.items():
            got = other["loss"] if name == "loss" else other["terms"][name]
            assert abs(got - value) <= most, f"step {at}, {name}: expected {value} within {most:.1e}, got {got}"
        norm, got = one["gradient_norm"], other["gradient_norm"]
        if norm is None or got is None:
            assert norm is got, f"step {at}: expected the gradient norm {norm}, got {got}"
        else:
            assert abs(got - norm) <= GRADIENT_NORM * norm, f"step {at}: expected the gradient norm {norm}, got {got}"


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    assert one.shape == other.shape, (one.shape, other.shape)
    return (one.double() - other.double()).norm().item()
