"""Philox against the published known answers, and the draws' own promises."""

import numpy as np
import pytest

from tacaf.draws import Stream, chosen, integers, permutation, permuted, philox, uniform

# Random123's kat_vectors for philox4x32 with 10 rounds: counter, key, answer.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter, key, answer):
    assert tuple(int(word) for word in philox(counter, key)) == answer


def test_a_draw_does_not_depend_on_what_is_drawn_beside_it():
    whole = uniform(Stream.CROP, 3, 5, 7, np.arange(100), 2)
    assert whole[42] == uniform(Stream.CROP, 3, 5, 7, 42, 2)


@pytest.mark.parametrize("changed", ["stream", "seed", "epoch", "step", "position", "draw"])
def test_every_key_matters(changed):
    key = {"stream": Stream.CROP, "seed": 1, "epoch": 2, "step": 3, "position": 4, "draw": 5}
    other = {**key, changed: Stream.FLIP if changed == "stream" else key[changed] + 1}
    assert uniform(**key) != uniform(**other)


def test_uniform_is_uniform():
    counts, _ = np.histogram(uniform(Stream.FLIP, 0, 0, 0, np.arange(100_000)), bins=20, range=(0, 1))
    chi_square = float(((counts - 5000) ** 2 / 5000).sum())
    assert chi_square < 43.8  # 99.9 % of the chi-square distribution with 19 degrees of freedom


def test_integers_reach_every_value_and_no_other():
    assert set(integers(3, Stream.CHANNEL, 0, 0, 0, position=np.arange(1000)).tolist()) == {0, 1, 2}


def test_permutation():
    first = permutation(50, Stream.IDENTITIES, 1, 0, 0)
    assert sorted(first.tolist()) == list(range(50))
    assert not np.array_equal(first, permutation(50, Stream.IDENTITIES, 1, 0, 1))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 64, 395, 1000])
def test_permuted_is_a_permutation(size):
    whole = permuted(np.arange(size), size, Stream.IDENTITIES, 4, 1, 2)
    assert sorted(whole.tolist()) == list(range(size))
    assert permuted([size - 1], size, Stream.IDENTITIES, 4, 1, 2) == whole[-1], "one place alone gives the same"


@pytest.mark.slow
def test_permuted_puts_everything_everywhere_equally_often():
    size, orders = 12, 1000
    counts = np.zeros((size, size))
    follows = np.zeros((size, size))
    for step in range(orders):
        order = permuted(np.arange(size), size, Stream.IDENTITIES, 0, 0, step)
        counts[np.arange(size), order] += 1
        follows[order[:-1], order[1:]] += 1
    expected = orders / size
    assert ((counts - expected) ** 2 / expected).sum() < 172.7  # 99.9 % of chi-square, 121 degrees of freedom
    pairs = orders / size  # (size - 1) places for a neighbour, size (size - 1) pairs
    assert ((follows[~np.eye(size, dtype=bool)] - pairs) ** 2 / pairs).sum() < 188.0  # the same for 131


def test_permuted_of_a_hundred_million_draws_only_what_is_asked():
    first = permuted(np.arange(1000), 10**8, Stream.IDENTITIES, 0, 0, 0)
    assert len(np.unique(first)) == 1000
    assert 0.45e8 < first.mean() < 0.55e8


def drawn(start: int, stop: int, share: float = 0.3, seed: int = 1, epoch: int = 2, step: int = 3) -> set[int]:
    found = chosen(share, start, stop, Stream.NEGATIVES, seed, epoch, step)
    assert found.dtype == np.int64
    assert (np.diff(found) > 0).all()
    return set(found.tolist())


def test_what_is_chosen_depends_on_no_bounds():
    every = drawn(0, 1000)
    for start, stop in ((0, 1), (1, 6), (3, 3), (5, 1000), (640, 801)):
        assert drawn(start, stop) == {number for number in every if start <= number < stop}


@pytest.mark.parametrize("changed", ["seed", "epoch", "step"])
def test_what_is_chosen_depends_on_every_key(changed):
    assert drawn(0, 1000) != drawn(0, 1000, **{changed: 9})


def test_each_number_is_chosen_with_the_probability_and_apart_from_the_others():
    size, steps, share = 64, 2000, 0.3
    taken = np.zeros((steps, size))
    for step in range(steps):
        taken[step, sorted(drawn(0, size, share, step=step))] = 1
    spread = np.sqrt(share * (1 - share) / steps)
    assert abs(taken.mean(0) - share).max() < 4.5 * spread
    correlation = np.corrcoef(taken.T)[~np.eye(size, dtype=bool)]
    assert abs(correlation).max() < 5 / np.sqrt(steps)
    assert drawn(0, size, share=1.0) == set(range(size))
