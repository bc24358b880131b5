"""A classifier split over ranks is the whole one: scores and gradients on 1 to 4 ranks, and initial weights."""

from typing import Any

import pytest
import torch

from tacaf import distributed
from tacaf.interfaces import StepKey
from tacaf.losses.identity import identity_loss
from tacaf.model.classifier import Classifier
from tacaf.model.identities import IdentityRange, step_identities
from tacaf.model.ranges import BLOCK, RangeClassifier, initial_weight
from tests.model.cases import tiny_model
from tests.model.rank_threads import on_ranks

ROWS, WIDTH, IDENTITIES = 6, 5, 11  # rows of a rank; 11 is divided by no number of ranks
RANKS = (1, 2, 4)
KEY = StepKey(seed=3, epoch=2, step=5)


def case(ranks: int, stack: tuple[int, ...], shared: bool, dtype: torch.dtype, scale: float = 3.0):
    """Rows and labels of all ranks, with every identity of a cut among them; and a whole weight."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(*stack, ranks * ROWS, WIDTH, dtype=dtype, generator=draw)
    weight = scale * torch.randn(*(() if shared else stack), IDENTITIES, WIDTH, dtype=dtype, generator=draw)
    label = torch.randint(IDENTITIES, (ranks * ROWS,), generator=draw)
    label[:2] = torch.tensor([0, IDENTITIES - 1])
    return rows, weight, label


def whole(rows: torch.Tensor, weight: torch.Tensor, label: torch.Tensor, smoothing: float, bf16: bool):
    """Loss over all rows and gradients by the whole classifier."""
    rows, classifier = rows.clone().requires_grad_(), Classifier(weight, 1000)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        scores = classifier(rows, label)
    loss = identity_loss(scores, smoothing)
    loss.backward()
    return loss.detach(), rows.grad, classifier[0].weight.grad


def split(monkeypatch: Any, ranks: int, rows: torch.Tensor, weight: torch.Tensor, label: torch.Tensor, **how: Any):
    """The same by ranks, put together: the mean of their losses, the gradients of that mean. With `share`, by the
    identities that a step of that share uses.
    """

    def job(rank: int) -> tuple[torch.Tensor, ...]:
        own = IdentityRange.of_rank(IDENTITIES, rank, ranks)
        classifier = RangeClassifier(weight[..., own.start : own.stop, :].clone(), own, how["chunk"])
        rows_of_rank = len(label) // ranks
        mine = slice(rank * rows_of_rank, (rank + 1) * rows_of_rank)
        rows_B = rows[..., mine, :].clone().requires_grad_()
        used = step_identities(how["share"], own, label[mine], KEY) if "share" in how else None
        with torch.autocast("cpu", torch.bfloat16, enabled=how["bf16"]):
            scores = classifier(rows_B, label[mine], used)
        loss = identity_loss(scores, how["smoothing"])
        loss.backward()
        assert classifier.weight.grad is not None
        return loss.detach(), rows_B.grad / ranks, classifier.weight.grad

    losses, row_gradients, weight_gradients = zip(*on_ranks(monkeypatch, ranks, job), strict=True)
    return torch.stack(losses).mean(), torch.cat(row_gradients, -2), torch.cat(weight_gradients, -2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("stack", "shared"), [((), True), ((3,), True), ((3,), False)], ids=["one", "shared", "stacked"]
)
@pytest.mark.parametrize("chunk", [1, 2, 1000])
@pytest.mark.parametrize("ranks", RANKS)
def test_loss_and_gradients_are_those_of_the_whole_classifier(monkeypatch, ranks, chunk, stack, shared, smoothing):
    rows, weight, label = case(ranks, stack, shared, torch.float32)
    expected = whole(rows, weight, label, smoothing, bf16=False)
    found = split(monkeypatch, ranks, rows, weight, label, chunk=chunk, smoothing=smoothing, bf16=False)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ranks", RANKS)
def test_in_float64_they_agree_to_the_last_digits(monkeypatch, ranks):
    rows, weight, label = case(ranks, (3,), False, torch.float64)
    expected = whole(rows, weight, label, 0.1, bf16=False)
    found = split(monkeypatch, ranks, rows, weight, label, chunk=2, smoothing=0.1, bf16=False)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("ranks", RANKS)
def test_under_autocast_the_logits_are_those_of_the_whole_classifier(monkeypatch, ranks):
    """Logits are the same numbers in bf16; gradients are rounded to bf16 for each range."""
    rows, weight, label = case(ranks, (), True, torch.float32)
    loss, *gradients = whole(rows, weight, label, 0.1, bf16=True)
    found, *others = split(monkeypatch, ranks, rows, weight, label, chunk=2, smoothing=0.1, bf16=True)
    torch.testing.assert_close(found, loss, rtol=1e-6, atol=1e-6)
    for one, other in zip(gradients, others, strict=True):
        assert other.dtype == torch.float32
        torch.testing.assert_close(other, one, rtol=0.02, atol=0.005 * one.abs().max().item())


@pytest.mark.parametrize("ranks", RANKS)
def test_large_logits_do_not_overflow(monkeypatch, ranks):
    rows, weight, label = case(ranks, (), True, torch.float32, scale=1e4)
    loss, *_ = whole(rows, weight, label, 0.0, bf16=False)
    found, *gradients = split(monkeypatch, ranks, rows, weight, label, chunk=2, smoothing=0.0, bf16=False)
    assert loss > 1000
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-3)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(("identities", "ranks"), [(11, 4), (4, 4), (1_000_001, 7), (5, 1)])
def test_the_ranges_cover_every_identity_once_and_are_even(identities, ranks):
    cuts = [IdentityRange.of_rank(identities, rank, ranks) for rank in range(ranks)]
    assert [cut.start for cut in cuts] == [0, *(cut.stop for cut in cuts[:-1])]
    assert cuts[-1].stop == identities
    lengths = {cut.stop - cut.start for cut in cuts}
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_initial_weights_depend_on_seed_name_and_identity_alone(shape):
    many = 2 * BLOCK + 17

    def drawn(start: int, stop: int, identities: int = many, name: str = "head", seed: int = 1) -> torch.Tensor:
        return initial_weight(name, shape, IdentityRange(start, stop, identities), 0.001, seed)

    every = drawn(0, many)
    assert every.shape == (*shape[:-1], many, shape[-1])
    for start, stop in ((0, 5), (BLOCK - 3, BLOCK + 4), (BLOCK, 2 * BLOCK), (7, many)):
        assert drawn(start, stop).equal(every[..., start:stop, :])
        assert drawn(start, stop, identities=10 * many).equal(every[..., start:stop, :])
    assert not drawn(0, 5, name="nodes").equal(drawn(0, 5))
    assert not drawn(0, 5, seed=2).equal(drawn(0, 5))
    assert every.unique().numel() > 0.99 * every.numel(), "no block repeats another"
    assert abs(every.std() - 0.001) < 1e-4


def test_a_rank_builds_its_range_alone_and_shows_it_to_no_engine(monkeypatch):
    def job(rank: int) -> tuple[dict[str, torch.Tensor], list[str]]:
        model = tiny_model(classifier={"sharding": "identities"})
        named = {name: module.weight for name, module in model.named_modules() if isinstance(module, RangeClassifier)}
        return {name: weight.detach() for name, weight in named.items()}, [name for name, _ in model.named_parameters()]

    ((alone, names),) = on_ranks(monkeypatch, 1, job)
    assert set(alone) == {"head.classifier", "node_head.classifier", "pair_stage.classifier"}
    assert not [name for name in names if "classifier" in name]
    pieces = on_ranks(monkeypatch, 2, job)
    for name, weight in alone.items():
        assert [piece[name].shape[-2] for piece, _ in pieces] == [2, 3]
        assert torch.cat([piece[name] for piece, _ in pieces], -2).equal(weight)


def test_the_weight_follows_the_module():
    model = tiny_model(classifier={"sharding": "identities"})
    model.double()
    assert model.head.classifier.weight.dtype == torch.float64
    assert model.head.classifier.weight.is_leaf
    assert distributed.world_size() == 1
