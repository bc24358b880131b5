"""How well features separate identities: distances of the same and of different ones, within and across modalities.

Every pair of images has a number, so that a large set is sampled without listing its pairs. A anchors, M images of the
modality that they are compared with, P pairs, D feature width.
"""

from typing import NamedTuple

import numpy as np

from tacaf.draws import Stream, uniform
from tacaf.evaluation.features import FeatureSet
from tacaf.evaluation.ranking import normalise
from tacaf.vocabulary import Modality

# At most, of each kind: a histogram of them has an error of about 1 % per bin, and a row has 7168 values.
PAIRS = 10_000
_CHUNK_PAIRS = 512


class PairKind(NamedTuple):
    """A kind of pairs of images: of the same identity or not, within a modality or across both."""

    same: bool
    across: bool

    def __str__(self) -> str:
        who = "same identity" if self.same else "different identities"
        return f"{who}, {'across modalities' if self.across else 'within a modality'}"


KINDS = tuple(PairKind(same, across) for same in (True, False) for across in (False, True))


class _Group(NamedTuple):
    """Anchors and the images that they are paired with, as rows of the features."""

    anchors: np.ndarray  # int64 [A]
    others: np.ndarray  # int64 [M]
    counts_A: np.ndarray  # int64, the number of partners of each anchor
    start_A: np.ndarray  # int64, where its pid starts among the others sorted by pid

    @classmethod
    def of(cls, pid: np.ndarray, anchors: np.ndarray, others: np.ndarray, kind: PairKind) -> "_Group":
        sorted_M = np.sort(pid[others])
        start_A = np.searchsorted(sorted_M, pid[anchors], "left")
        own_A = np.searchsorted(sorted_M, pid[anchors], "right") - start_A
        if kind.same:
            return cls(anchors, others, own_A - (0 if kind.across else 1), start_A)
        return cls(anchors, others, len(others) - own_A, start_A)


def sample_distances(features: FeatureSet, metric: str, seed: int, most: int = PAIRS) -> dict[PairKind, np.ndarray]:
    """The distances of each kind of pairs, float64 [P]: of all pairs, or of `most` drawn by the seed with replacement.

    An image is never paired with itself. The distances of a kind without pairs are empty.
    """
    return {
        kind: pair_distances(features.features, *_pairs(features, kind, seed, most, step), metric)
        for step, kind in enumerate(KINDS)
    }


def pair_distances(features_ND: np.ndarray, first_P: np.ndarray, second_P: np.ndarray, metric: str) -> np.ndarray:
    """The distance of each pair of rows, float64 [P], computed in chunks; for `metric` see `ranking.normalise`."""
    parts = [np.empty(0)]
    for start in range(0, len(first_P), _CHUNK_PAIRS):
        rows = slice(start, start + _CHUNK_PAIRS)
        one_PD, other_PD = (normalise(features_ND[pairs[rows]], metric) for pairs in (first_P, second_P))
        if metric == "cosine":
            parts.append(1 - np.einsum("pd,pd->p", one_PD, other_PD).astype(np.float64))
        else:
            parts.append(np.linalg.norm(one_PD - other_PD, axis=1))
    return np.concatenate(parts)


def _pairs(features: FeatureSet, kind: PairKind, seed: int, most: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of both images of each pair: those of each anchor modality, drawn from both modalities together."""
    visible, infrared = (np.flatnonzero(features.modality == modality.code) for modality in Modality)
    sides = [(visible, infrared)] if kind.across else [(visible, visible), (infrared, infrared)]
    groups = [_Group.of(features.pid, anchors, others, kind) for anchors, others in sides]
    totals = np.cumsum([0] + [int(group.counts_A.sum()) for group in groups])
    total = int(totals[-1])
    if total <= most:
        number_P = np.arange(total)
    else:
        drawn = uniform(Stream.REPORT, seed, 0, step, np.arange(most))
        number_P = np.minimum((drawn * total).astype(np.int64), total - 1)
    rows = []
    for number, group in enumerate(groups):
        own = number_P[(number_P >= totals[number]) & (number_P < totals[number + 1])] - totals[number]
        rows.append(_look_up(features.pid, own, group, kind))
    return np.concatenate([one for one, _ in rows]), np.concatenate([other for _, other in rows])


def _look_up(pid: np.ndarray, number_P: np.ndarray, group: _Group, kind: PairKind) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the pairs with these numbers: an anchor's pairs are consecutive, its partners sorted by pid."""
    anchors, others, counts_A, start_A = group
    stop_A = np.cumsum(counts_A)
    anchor_P = np.searchsorted(stop_A, number_P, "right")
    partner_P = number_P - (stop_A - counts_A)[anchor_P]
    order_M = np.argsort(pid[others], kind="stable")
    if kind.same:
        partner_P = partner_P + start_A[anchor_P]
        if not kind.across:  # skip the anchor itself
            place_of = np.empty(len(others), np.int64)
            place_of[order_M] = np.arange(len(others))
            partner_P += partner_P >= place_of[anchor_P]
    else:  # skip the anchor's identity
        own_A = len(others) - counts_A
        partner_P = partner_P + np.where(partner_P >= start_A[anchor_P], own_A[anchor_P], 0)
    return anchors[anchor_P], others[order_M[partner_P]]
