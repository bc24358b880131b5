"""Sampled negatives: which identities a step uses, and the softmax over them against a scalar loop on 1 to 4 ranks."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tacaf.draws import philox
from tacaf.interfaces import StepKey
from tacaf.losses.total import LossConfig, TacafLoss
from tacaf.model.classifier import ClassifierConfig
from tacaf.model.identities import IdentityRange, step_identities
from tacaf.model.ranges import RangeClassifier
from tests.model.cases import IDENTITIES as TINY_IDENTITIES
from tests.model.cases import dot, pairs_of, softmax, tiny_batch, tiny_model
from tests.model.rank_threads import on_ranks
from tests.model.test_ranges import IDENTITIES, KEY, RANKS, ROWS, case, split, whole

SHARE = 0.3


def used_by_ranks(monkeypatch: Any, ranks: int, label: torch.Tensor, share: float, key: StepKey = KEY) -> list[int]:
    """The identities that a step uses, those of all ranks together; `label` is divided among the ranks."""

    def job(rank: int) -> tuple[list[int], float]:
        own = IdentityRange.of_rank(IDENTITIES, rank, ranks)
        used = step_identities(share, own, label.chunk(ranks)[rank], key)
        return (used.place_S + own.start).tolist(), float(used.total)

    parts, counts = zip(*on_ranks(monkeypatch, ranks, job), strict=True)
    found = [identity for part in parts for identity in part]
    assert counts == (len(found),) * ranks
    assert found == sorted(set(found))
    return found


def scalar_step(
    rows: torch.Tensor, weight: torch.Tensor, label: torch.Tensor, used: list[int], smoothing: float
) -> tuple[float, list[list[float]], list[list[float]]]:
    """Mean loss and the gradients of rows and weights, by one number after the other; smoothing is over `used`."""
    rows_, weights, count = rows.tolist(), weight.tolist(), len(rows)
    loss = 0.0
    rows_gradient = [[0.0] * len(row) for row in rows_]
    weight_gradient = [[0.0] * len(row) for row in weights]
    for at, (row, own) in enumerate(zip(rows_, label.tolist(), strict=True)):
        probabilities = softmax([dot(weights[identity], row) for identity in used])
        for identity, probability in zip(used, probabilities, strict=True):
            target = smoothing / len(used) + (1 - smoothing) * (identity == own)
            loss -= target * math.log(probability) / count
            for channel, (x, w) in enumerate(zip(row, weights[identity], strict=True)):
                rows_gradient[at][channel] += (probability - target) * w / count
                weight_gradient[identity][channel] += (probability - target) * x / count
    return loss, rows_gradient, weight_gradient


def double(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(5))
def test_every_number_of_ranks_uses_the_same_identities(monkeypatch, seed):
    label = torch.tensor([0, 0, 3, 10, 3, 3, 10, 0])
    key = StepKey(seed, 1, 4)
    one = used_by_ranks(monkeypatch, 1, label, SHARE, key)
    assert {0, 3, 10} <= set(one)
    assert used_by_ranks(monkeypatch, 2, label, SHARE, key) == one
    assert used_by_ranks(monkeypatch, 4, label, SHARE, key) == one


def test_the_identities_used_are_the_batch_and_those_drawn(monkeypatch):
    label = torch.tensor([7, 7])
    found = [used_by_ranks(monkeypatch, 1, label, SHARE, StepKey(0, 0, step)) for step in range(300)]
    assert all(7 in used for used in found)
    assert len({tuple(used) for used in found}) > 100
    shares = [sum(identity in used for used in found) / 300 for identity in range(IDENTITIES) if identity != 7]
    assert all(abs(share - SHARE) < 4 * math.sqrt(SHARE * (1 - SHARE) / 300) for share in shares)


def test_a_draw_is_the_same_for_ever():
    """It is the `identity % 4`-th word of block `identity // 4` of the stream, for whoever resumes the run."""
    used = step_identities(0.25, IdentityRange(0, 30, 30), torch.tensor([29]), StepKey(1, 2, 3))
    words = [philox((0, identity // 4, 3, 2), (1, 15))[identity % 4] for identity in range(29)]
    assert used.place_S.tolist() == [identity for identity, word in enumerate(words) if word < 2**30] + [29]
    assert used.place_S.tolist() == [5, 9, 10, 15, 29]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 2, 1000])
@pytest.mark.parametrize("ranks", RANKS)
def test_loss_and_gradients_are_those_of_the_scalar_loop(monkeypatch, ranks, chunk, smoothing):
    rows, weight, label = case(ranks, (), True, torch.float64)
    used = used_by_ranks(monkeypatch, ranks, label, SHARE)
    expected = scalar_step(rows, weight, label, used, smoothing)
    found = split(monkeypatch, ranks, rows, weight, label, chunk=chunk, smoothing=smoothing, bf16=False, share=SHARE)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, double(one), rtol=1e-12, atol=1e-13)
    unused = sorted(set(range(IDENTITIES)) - set(used))
    assert not found[2][unused].any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("stack", "shared"), [((), True), ((3,), True), ((3,), False)], ids=["one", "shared", "stacked"]
)
def test_one_two_and_four_ranks_agree(monkeypatch, stack, shared, smoothing):
    rows, weight, label = case(4, stack, shared, torch.float32)
    label = label % 3 * 4  # three identities, so that most are drawn or left out
    how = {"smoothing": smoothing, "bf16": False, "share": SHARE, "chunk": 2}
    assert len(used_by_ranks(monkeypatch, 1, label, SHARE)) < IDENTITIES
    expected = split(monkeypatch, 1, rows, weight, label, **how)
    for ranks in (2, 4):
        found = split(monkeypatch, ranks, rows, weight, label, **how)
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ranks", RANKS)
def test_a_sample_of_all_identities_is_the_exact_softmax(monkeypatch, ranks):
    rows, weight, label = case(ranks, (3,), False, torch.float32)
    expected = whole(rows, weight, label, 0.1, bf16=False)
    found = split(monkeypatch, ranks, rows, weight, label, chunk=2, smoothing=0.1, bf16=False, share=1.0)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-6)


def test_under_autocast_gradients_are_float32_and_those_left_out_are_zero(monkeypatch):
    rows, weight, label = case(2, (), True, torch.float32)
    label = label % 2
    used = used_by_ranks(monkeypatch, 2, label, SHARE)
    expected = scalar_step(rows.bfloat16().double(), weight.bfloat16().double(), label, used, 0.1)
    loss, *gradients = split(monkeypatch, 2, rows, weight, label, chunk=2, smoothing=0.1, bf16=True, share=SHARE)
    torch.testing.assert_close(loss.double(), double(expected[0]), rtol=0.02, atol=0.02)
    for one, other in zip(expected[1:], gradients, strict=True):
        assert other.dtype == torch.float32
        torch.testing.assert_close(other.double(), double(one), rtol=0.03, atol=0.01 * abs(double(one)).max().item())
    assert not gradients[1][sorted(set(range(IDENTITIES)) - set(used))].any()


def test_a_rank_that_uses_none_of_its_range_takes_part(monkeypatch):
    rows, weight, _ = case(2, (), True, torch.float64)
    label = torch.full((2 * ROWS,), IDENTITIES - 1)
    nothing = 1e-9  # of a share: the batch's one identity is all that is used
    assert used_by_ranks(monkeypatch, 2, label, nothing) == [IDENTITIES - 1]
    loss, *gradients = split(monkeypatch, 2, rows, weight, label, chunk=2, smoothing=0.1, bf16=False, share=nothing)
    assert loss == 0.0, "one identity alone has probability 1"
    assert not any(gradient.any() for gradient in gradients)


def test_all_classifiers_of_a_model_use_the_same_identities():
    share = 0.4
    model = tiny_model(classifier={"sharding": "identities", "negatives": share}).train()
    batch = tiny_batch(identities=2)
    for step in range(10):
        key = StepKey(0, 0, step)
        own = IdentityRange.of_rank(TINY_IDENTITIES, 0, 1)
        used = set(step_identities(share, own, batch.label_B, key).place_S.tolist())
        output = model(batch.images_BCHW, batch.label_B, batch.visible, pairs_of(batch, 3), pairs_of(batch, 4), key)
        TacafLoss(LossConfig())(output, batch.label_B)[0].backward()
        for module in model.modules():
            if isinstance(module, RangeClassifier):
                assert module.weight.grad is not None
                learned = module.weight.grad.abs().sum(-1).reshape(-1, TINY_IDENTITIES).amax(0)
                assert set(torch.nonzero(learned)[:, 0].tolist()) == used
                module.weight.grad = None


def test_with_all_negatives_nothing_is_drawn():
    model = tiny_model(classifier={"sharding": "identities", "negatives": 1.0})
    batch = tiny_batch()
    pairs = (pairs_of(batch, 3), pairs_of(batch, 4))
    with torch.no_grad():
        plain = model(batch.images_BCHW, batch.label_B, batch.visible, *pairs)
        keyed = model(batch.images_BCHW, batch.label_B, batch.visible, *pairs, KEY)
    assert plain.scores.own_B.equal(keyed.scores.own_B)
    assert plain.scores.mean_B.equal(keyed.scores.mean_B)


@pytest.mark.parametrize("negatives", [0, -0.5, 1.5, "half"])
def test_a_share_is_above_0_and_at_most_1(negatives):
    with pytest.raises(ValidationError, match="negatives"):
        ClassifierConfig.model_validate({"sharding": "identities", "negatives": negatives})


def test_negatives_are_drawn_of_split_classifiers_alone():
    with pytest.raises(ValidationError, match=r"negatives: expected 1 .*got 0\.5"):
        ClassifierConfig.model_validate({"negatives": 0.5})
    assert ClassifierConfig.model_validate({"negatives": 1}) == ClassifierConfig()


def test_how_many_identities_a_step_uses_on_average():
    config = ClassifierConfig(sharding="identities", negatives=0.25)
    assert config.expected_identities(1008, in_batch=8) == 8 + 250
    assert ClassifierConfig().expected_identities(1008, in_batch=8) == 1008
