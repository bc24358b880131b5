"""A model's scores by identity, from which means and a bootstrap over identities are computed.

P identities, Q queries, T trials.
"""

from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from tacaf.documents import Count, Document
from tacaf.evaluation.features import FeatureSet
from tacaf.evaluation.ranking import HEADLINE
from tacaf.evaluation.setting import TRIALS, Setting
from tacaf.evaluation.trials import make_trials

Sum = Annotated[float, Field(ge=0)]


class IdentityRecord(Document):
    """`IdentityScores` as they are stored: lists with an entry for each identity."""

    pid: list[int]
    queries: list[Count]
    rank1: list[Sum]
    mAP: list[Sum]
    mINP: list[Sum]

    @model_validator(mode="after")
    def _of_one_length(self) -> "IdentityRecord":
        for name in ("queries", *HEADLINE):
            values = getattr(self, name)
            if len(values) != len(self.pid):
                raise ValueError(f"{name}: expected an entry for each of {len(self.pid)} identities, got {len(values)}")
        return self


class IdentityScores(NamedTuple):
    """A model's scores, summed over the queries of each identity."""

    pid_P: np.ndarray
    queries_P: np.ndarray  # number of its queries that have a match in any trial
    # For each HEADLINE measure, float [P]: the sum over these queries of the mean over the trials with a match.
    sums: dict[str, np.ndarray]

    def means(self) -> dict[str, float]:
        return {name: float(values.sum() / self.queries_P.sum()) for name, values in self.sums.items()}

    def record(self) -> IdentityRecord:
        """The scores for a file; `of` is the inverse. With six decimals, means over all queries lose less than 1e-6."""
        sums = {name: [round(float(value), 6) for value in values] for name, values in self.sums.items()}
        return IdentityRecord(pid=self.pid_P.tolist(), queries=self.queries_P.tolist(), **sums)

    @classmethod
    def of(cls, record: IdentityRecord) -> "IdentityScores":
        """The scores in a record."""
        sums = {name: np.array(getattr(record, name), float) for name in HEADLINE}
        return cls(np.array(record.pid), np.array(record.queries), sums)


def score_identities(features: FeatureSet, setting: Setting, metric: str, trials: int = TRIALS) -> IdentityScores:
    """Score the queries of every identity separately."""
    made = make_trials(features, setting, trials)
    by_trial: dict[str, list[np.ndarray]] = {name: [] for name in HEADLINE}
    for trial in made:
        ranks = trial.rank(metric, setting.unique_pids)
        valid_Q = ranks.matches_Q > 0
        for name, values in (
            ("rank1", ranks.first_Q == 1),
            ("mAP", ranks.average_precision_Q),
            ("mINP", ranks.inverse_penalty_Q),
        ):
            by_trial[name].append(np.where(valid_Q, values, np.nan))
    pid_P, person_Q = np.unique(features.pid[made[0].query_rows], return_inverse=True)
    means = {name: _mean(np.stack(rows)) for name, rows in by_trial.items()}
    matched_Q = np.isfinite(means["rank1"])
    sums = {name: np.bincount(person_Q, np.where(matched_Q, own, 0), len(pid_P)) for name, own in means.items()}
    return IdentityScores(pid_P, np.bincount(person_Q, matched_Q, len(pid_P)).astype(int), sums)


def _mean(values_TQ: np.ndarray) -> np.ndarray:
    """The mean over the trials with a match; NaN for a query without one."""
    valid_TQ = np.isfinite(values_TQ)
    count_Q = valid_TQ.sum(axis=0)
    return np.where(count_Q > 0, np.where(valid_TQ, values_TQ, 0).sum(axis=0) / np.maximum(count_Q, 1), np.nan)
