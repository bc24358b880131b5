"""The bounds of tests/tolerances.py let another order of the same sums pass and refuse a training that is wrong."""

import copy

import pytest
import torch
from torch import nn

from tests.tolerances import State, assert_same_losses, assert_same_training, worst_difference

STEPS, ROWS = 4, 32


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 9, 5)
    )


def trained(wrong: str = "", steps: int = STEPS) -> State:
    """The state after some steps of SGD; `wrong` names what another order of the sums, or a mistake, changes."""
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    for step in range(steps):
        draws = torch.Generator().manual_seed(step)
        images, labels = torch.randn(ROWS, 3, 8, 8, generator=draws), torch.randint(5, (ROWS,), generator=draws)
        if wrong == "order":
            order = torch.randperm(ROWS, generator=draws)
            images, labels = images[order], labels[order]
        losses = nn.functional.cross_entropy(network(images), labels, reduction="none")
        loss = losses[: ROWS // 2].sum() / ROWS if wrong == "one rank only" else losses.mean()
        optimizer.zero_grad()
        (2 * loss if wrong == "sum of two ranks" else loss).backward()
        if wrong == "one bias":
            network[5].bias.grad = None
        optimizer.step()
    return copy.deepcopy(network.state_dict())


@pytest.fixture(scope="module")
def start() -> State:
    return dict(model().named_parameters())


@pytest.fixture(scope="module")
def expected() -> State:
    return trained()


def test_another_order_of_the_same_sums_passes(start, expected):
    found = trained("order")
    assert any(not found[name].equal(expected[name]) for name in start)
    assert_same_training(start, expected, found)


def test_the_rest_of_a_cancellation_is_compared_with_the_whole_update():
    """A bias before a batch norm has a gradient of zero: what moves it is rounding, which differs altogether."""
    start = {"weight": torch.zeros(4), "bias": torch.zeros(1)}
    expected = {"weight": torch.ones(4), "bias": torch.tensor([1e-6])}
    assert_same_training(start, expected, {**expected, "bias": torch.tensor([-1e-6])})
    assert worst_difference(start, expected, {**expected, "bias": torch.tensor([1e-4])}) > (1, "bias")


@pytest.mark.parametrize("wrong", ["one rank only", "sum of two ranks", "one bias"])
def test_a_wrong_gradient_is_refused(start, expected, wrong):
    assert worst_difference(start, expected, trained(wrong))[0] > 3
    with pytest.raises(AssertionError, match="times the bound"):
        assert_same_training(start, expected, trained(wrong))


def test_a_lost_step_is_refused(start, expected):
    found = {**expected, **{name: tensor for name, tensor in trained(steps=STEPS - 1).items() if name in start}}
    assert worst_difference(start, expected, found)[0] > 3


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("1.running_mean", lambda mean: mean + 0.01),
        ("1.running_var", lambda variance: variance * 1.01),
        ("1.num_batches_tracked", lambda count: count + 1),
        ("5.weight", lambda weight: weight * float("nan")),
    ],
)
def test_other_statistics_and_what_is_no_number_are_refused(start, expected, name, change):
    ratio, worst = worst_difference(start, expected, {**expected, name: change(expected[name])})
    assert ratio > 1
    assert worst == name


def test_nothing_trained_is_no_comparison(start, expected):
    untrained = {**expected, **start}
    with pytest.raises(AssertionError, match="nothing was trained"):
        assert_same_training(start, untrained, untrained)


def record(loss: float, hinge: float, norm: float | None = 1.0) -> dict:
    return {"loss": loss, "terms": {"hinge": hinge, "identity": loss - hinge}, "gradient_norm": norm}


def test_losses_are_compared_in_units_of_the_whole_loss():
    one = [record(10, 1e-5), record(9, 1e-5, None)]
    assert_same_losses(one, [record(10.00005, 2e-5), record(9.005, 1e-3, None)])
    assert_same_losses(one[:1], [record(10.005, 1e-5)], updated=True)
    for other in (
        [record(10.001, 1e-5), one[1]],
        [one[0], record(9.02, 1e-5, None)],
        [record(10, 1e-5, 1.1), one[1]],
        [one[0], record(9, 1e-5, 1.0)],
        [record(10, float("nan")), one[1]],
    ):
        with pytest.raises(AssertionError, match="expected"):
            assert_same_losses(one, other)
    with pytest.raises(ValueError, match="zip"):
        assert_same_losses(one, one[:1])
