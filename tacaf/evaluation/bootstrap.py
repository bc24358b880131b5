"""Is one method better than another? Paired differences with an interval over identities and seeds.

S seeds, Q queries, P identities, N resamplings. Queries of one identity succeed and fail together, and two trainings
with other seeds differ, so both are resampled whole: identities with their queries, seeds with their models. The
methods are paired: the same resampling for both. Of n seeds or identities n - 1 are drawn: n would give (n - 1) / n of
the variance, which with three seeds is a third too little. Source: the percentile bootstrap (Efron) over two crossed
factors (Owen 2007), with the sample size of Rao and Wu (1988).
"""

from typing import NamedTuple

import numpy as np

RESAMPLINGS = 10_000


class Difference(NamedTuple):
    """Mean of a - b and its 95 % interval, and from how many seeds; of one seed, the spread over seeds is not in it."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def sure(self) -> bool:
        """Whether the interval knows the spread over seeds and lies on one side of zero."""
        return self.seeds > 1 and (self.low > 0 or self.high < 0)


def paired_difference(
    a_SQ: np.ndarray, b_SQ: np.ndarray, pid_Q: np.ndarray, resamplings: int = RESAMPLINGS, seed: int = 0
) -> Difference:
    """Mean and interval of `a - b` for a measure of every query (fractions, NaN where a query has no match).

    a_SQ, b_SQ: float [S, Q], row s of both from the same seed; pid_Q: the queries' identities. With one seed the
    interval is over identities alone. The resampling is a function of `seed`.
    """
    assert a_SQ.shape == b_SQ.shape
    difference_SQ = a_SQ - b_SQ
    valid_SQ = np.isfinite(difference_SQ)
    pids, of_Q = np.unique(pid_Q, return_inverse=True)
    sums_SP = np.stack([np.bincount(of_Q, np.where(valid, row, 0), len(pids)) for row, valid in _rows(difference_SQ)])
    counts_SP = np.stack([np.bincount(of_Q, valid, len(pids)) for _, valid in _rows(difference_SQ)])
    generator = np.random.default_rng(seed)
    seeds, identities = sums_SP.shape
    # how often each seed and each identity is drawn: a weight for every pair of them
    weight_NS, weight_NP = (resampling_weights(generator, number, resamplings) for number in (seeds, identities))
    drawn_N = np.einsum("ns,sp,np->n", weight_NS, sums_SP, weight_NP, optimize=True)
    drawn_N /= np.einsum("ns,sp,np->n", weight_NS, counts_SP, weight_NP, optimize=True)
    low, high = np.percentile(drawn_N, (2.5, 97.5))
    return Difference(float(difference_SQ[valid_SQ].mean()), float(low), float(high), seeds)


def resampling_weights(generator: np.random.Generator, number: int, resamplings: int) -> np.ndarray:
    """How often each of `number` is drawn in each resampling, float [resamplings, number]."""
    return generator.multinomial(max(number - 1, 1), np.full(number, 1 / number), resamplings).astype(float)


def _rows(values_SQ: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(row, np.isfinite(row)) for row in values_SQ]
