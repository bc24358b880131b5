"""Whether one method is better than another: paired differences with an interval over identities and seeds.

S seeds, P identities, N resamplings. Queries of one identity succeed and fail together, and trainings with different
seeds differ, so both are resampled as wholes: identities with their queries, seeds with their models. The methods are
paired: both use the same resampling. Of n seeds or identities, n - 1 are drawn, because drawing n would give (n - 1) /
n of the variance, which with three seeds is a third too little. The spread of three values is itself uncertain, which
resampling cannot show, so the interval is Student's: the bootstrap's standard error times t, with degrees of freedom
from both factors' shares in the variance. Source: the bootstrap (Efron) over two crossed factors (Owen 2007), with the
sample size of Rao and Wu (1988) and the degrees of freedom of Satterthwaite (1946).
"""

from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

RESAMPLINGS = 10_000


class Difference(NamedTuple):
    """The mean of a - b, its 95 % interval, and the number of seeds. With one seed, their spread is ignored."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def sure(self) -> bool:
        """Whether the interval is on one side of zero and based on at least three seeds; two show too little spread."""
        return self.seeds > 2 and (self.low > 0 or self.high < 0)


def paired_difference(
    a_SP: np.ndarray, b_SP: np.ndarray, queries_P: np.ndarray, resamplings: int = RESAMPLINGS, seed: int = 0
) -> Difference:
    """The mean over queries and the interval of `a - b` for a measure in fractions.

    a_SP, b_SP: float [S, P], the measure summed over each identity's queries, with row s of both from the same seed;
    queries_P: the number of queries of each identity, without those that have no match. With one seed, the interval is
    only over identities. The resampling is a function of `seed`.
    """
    assert a_SP.shape == b_SP.shape
    difference_SP = a_SP - b_SP
    seeds, identities = difference_SP.shape
    generator = np.random.default_rng(seed)
    # The numbers of times that each seed and each identity is drawn; their products weight every pair.
    weight_NS, weight_NP = (resampling_weights(generator, number, resamplings) for number in (seeds, identities))
    drawn_N = np.einsum("ns,sp,np->n", weight_NS, difference_SP, weight_NP, optimize=True)
    drawn_N /= weight_NS.sum(axis=1) * (weight_NP @ queries_P)
    mean = difference_SP.sum() / (seeds * queries_P.sum())
    # How much each seed and each identity changes the mean, compared with all being alike.
    own_S = difference_SP.sum(axis=1) / queries_P.sum() - mean
    own_P = (difference_SP.mean(axis=0) - mean * queries_P) / queries_P.mean()
    reach = float(drawn_N.std() * stdtrit(degrees_of_freedom(own_S, own_P), 0.975))
    return Difference(float(mean), float(mean) - reach, float(mean) + reach, seeds)


def degrees_of_freedom(*factors: np.ndarray) -> float:
    """The degrees of freedom of a sum of the variances of the factors' means (Satterthwaite). Each factor: float [n].

    They are close to those of the factor that varies most. A factor with a single value is ignored.
    """
    parts = [(factor.var(ddof=1) / len(factor), len(factor) - 1) for factor in factors if len(factor) > 1]
    total = sum(variance for variance, _ in parts)
    if total == 0:
        return float(max((free for _, free in parts), default=1))
    return total**2 / sum(variance**2 / free for variance, free in parts)


def resampling_weights(generator: np.random.Generator, number: int, resamplings: int) -> np.ndarray:
    """How often each of `number` is drawn in each resampling, float [resamplings, number]."""
    return generator.multinomial(max(number - 1, 1), np.full(number, 1 / number), resamplings).astype(float)
