"""Is one method better than another? Paired differences with an interval over identities and seeds.

S seeds, P identities, N resamplings. Queries of one identity succeed and fail together, and two trainings
with other seeds differ, so both are resampled whole: identities with their queries, seeds with their models. The
methods are paired: the same resampling for both. Of n seeds or identities n - 1 are drawn: n would give (n - 1) / n of
the variance, which with three seeds is a third too little. The spread of three values is itself uncertain, which no
resampling of them can tell; so the interval is Student's, the bootstrap's standard error times t, with the degrees of
freedom that both factors' shares in the variance allow. Source: the bootstrap (Efron) over two crossed factors (Owen
2007), with the sample size of Rao and Wu (1988) and the degrees of freedom of Satterthwaite (1946).
"""

from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

RESAMPLINGS = 10_000


class Difference(NamedTuple):
    """Mean of a - b and its 95 % interval, and from how many seeds; of one, the spread over seeds is not in it."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def sure(self) -> bool:
        """Whether the interval knows the spread over seeds, for which two are too few, and lies on one side of zero."""
        return self.seeds > 2 and (self.low > 0 or self.high < 0)


def paired_difference(
    a_SP: np.ndarray, b_SP: np.ndarray, queries_P: np.ndarray, resamplings: int = RESAMPLINGS, seed: int = 0
) -> Difference:
    """Mean over queries and interval of `a - b` for a measure in fractions.

    a_SP, b_SP: float [S, P], the measure summed over each identity's queries, row s of both from the same seed;
    queries_P: how many queries each identity has (those without a match are in neither). With one seed the interval is
    over identities alone. The resampling is a function of `seed`.
    """
    assert a_SP.shape == b_SP.shape
    difference_SP = a_SP - b_SP
    seeds, identities = difference_SP.shape
    generator = np.random.default_rng(seed)
    # how often each seed and each identity is drawn: a weight for every pair of them
    weight_NS, weight_NP = (resampling_weights(generator, number, resamplings) for number in (seeds, identities))
    drawn_N = np.einsum("ns,sp,np->n", weight_NS, difference_SP, weight_NP, optimize=True)
    drawn_N /= weight_NS.sum(axis=1) * (weight_NP @ queries_P)
    mean = difference_SP.sum() / (seeds * queries_P.sum())
    # what a seed, and what an identity adds to the mean, over what it would if all were alike
    own_S = difference_SP.sum(axis=1) / queries_P.sum() - mean
    own_P = (difference_SP.mean(axis=0) - mean * queries_P) / queries_P.mean()
    reach = float(drawn_N.std() * stdtrit(degrees_of_freedom(own_S, own_P), 0.975))
    return Difference(float(mean), float(mean) - reach, float(mean) + reach, seeds)


def degrees_of_freedom(*factors: np.ndarray) -> float:
    """Of a variance that is the sum of those of the factors' means (Satterthwaite); each factor a float array [n].

    Near those of the factor that varies most; of one value nothing is known, so it does not count.
    """
    found = [(factor.var(ddof=1) / len(factor), len(factor) - 1) for factor in factors if len(factor) > 1]
    whole = sum(variance for variance, _ in found)
    if whole == 0:
        return float(max((free for _, free in found), default=1))
    return whole**2 / sum(variance**2 / free for variance, free in found)


def resampling_weights(generator: np.random.Generator, number: int, resamplings: int) -> np.ndarray:
    """How often each of `number` is drawn in each resampling, float [resamplings, number]."""
    return generator.multinomial(max(number - 1, 1), np.full(number, 1 / number), resamplings).astype(float)
