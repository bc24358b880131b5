"""The interval covers what it says, sees identities and seeds, and pairs."""

import numpy as np
import pytest

from launch.study.bootstrap import paired_difference, resampling_weights


def sample(generator, seeds, identities, queries, effect, identity_spread=0.0, seed_spread=0.0):
    """a - b of every query: effect, an identity's own share, a seed's own share, and noise."""
    pid_Q = np.repeat(np.arange(identities), queries)
    own_P = generator.normal(0, identity_spread, identities)
    own_S = generator.normal(0, seed_spread, seeds)
    noise_SQ = generator.normal(0, 0.1, (seeds, len(pid_Q)))
    b_SQ = generator.uniform(0, 1, (seeds, len(pid_Q)))
    a_SQ = b_SQ + effect + own_P[pid_Q] + own_S[:, None] + noise_SQ
    return by_identity(a_SQ, queries), by_identity(b_SQ, queries), np.full(identities, queries)


def by_identity(values_SQ, queries):
    """The sum over each identity's queries."""
    return values_SQ.reshape(len(values_SQ), -1, queries).sum(axis=2)


def test_the_mean_is_the_mean_over_all_queries():
    """Of an identity that has fewer of them too, as where some have no match."""
    a_SP, b_SP = np.array([[3.0, 0.5], [2.0, 0.5]]), np.array([[1.0, 0.5], [1.0, 0.0]])
    found = paired_difference(a_SP, b_SP, np.array([4, 1]), 500)
    assert found.mean == pytest.approx((2 + 0 + 1 + 0.5) / 10)
    assert found.low < found.mean < found.high
    assert found == paired_difference(a_SP, b_SP, np.array([4, 1]), 500)


# Student's t at .975 for 39 and for 7 degrees of freedom
@pytest.mark.parametrize(
    ("identity_spread", "seed_spread", "student"), [(0.2, 0.0, 2.023), (0.0, 0.1, 2.365)], ids=["identities", "seeds"]
)
def test_the_interval_is_as_wide_as_what_varies(identity_spread, seed_spread, student):
    """Noise of the queries alone would give about .1 / sqrt(queries); the factor that varies must show."""
    generator = np.random.default_rng(1)
    seeds, identities, queries = 8, 40, 10
    a_SP, b_SP, queries_P = sample(generator, seeds, identities, queries, 0, identity_spread, seed_spread)
    found = paired_difference(a_SP, b_SP, queries_P, 2000)
    difference_SP = (a_SP - b_SP) / queries_P
    of_seeds = difference_SP.mean(1).std() / np.sqrt(seeds)
    of_identities = difference_SP.mean(0).std() / np.sqrt(identities)
    assert (found.high - found.low) / 2 == pytest.approx(student * np.hypot(of_seeds, of_identities), rel=0.1)
    assert max(of_seeds, of_identities) > 3 * 0.1 / np.sqrt(seeds * identities * queries)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("identity_spread", "seed_spread"), [(0.15, 0.0), (0.05, 0.1)], ids=["identities", "seeds"])
def test_it_covers_the_truth_as_often_as_it_says(seeds, identity_spread, seed_spread):
    """95 % of intervals should hold the effect, whatever varies; of 300, fewer than 272 or more than 296 come by chance
    once in a thousand. Percentiles of resampled means held it in 79 to 88 % where seeds vary."""
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(300):
        sums = sample(generator, seeds, 40, 3, 0.05, identity_spread, seed_spread)
        found = paired_difference(*sums, 300)
        covered += found.low <= 0.05 <= found.high
    assert 272 <= covered <= 296


def test_few_seeds_do_not_look_surer_than_they_are():
    """The variance of a mean, from three values; drawing as many as there are would leave out a third of it."""
    values_S = np.array([0.1, -0.2, 0.4])
    weight_NS = resampling_weights(np.random.default_rng(4), 3, 50_000)
    drawn_N = weight_NS @ values_S / weight_NS.sum(axis=1)
    assert drawn_N.var() == pytest.approx(values_S.var(ddof=1) / 3, rel=0.05)


@pytest.mark.parametrize(("seeds", "sure"), [(1, False), (2, False), (3, True)])
def test_one_seed_is_never_sure_nor_are_two(seeds, sure):
    a_SP, b_SP, queries_P = sample(np.random.default_rng(5), seeds, 50, 4, 0.5)
    found = paired_difference(a_SP, b_SP, queries_P, 200)
    assert found.low > 0
    assert (found.seeds, found.sure) == (seeds, sure)


def test_equal_methods_are_never_sure():
    a_SP, _, queries_P = sample(np.random.default_rng(3), 3, 20, 4, 0)
    found = paired_difference(a_SP, a_SP, queries_P, 200)
    assert found.mean == found.low == found.high == 0
    assert not found.sure
    assert paired_difference(a_SP + 0.1, a_SP, queries_P, 200).sure
