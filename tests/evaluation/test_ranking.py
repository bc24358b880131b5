"""The ranking core against a list walked item by item, with many equal distances."""

import numpy as np
import pytest

from tacaf.evaluation.ranking import MEASURES, chance_rank1, distances, measures, normalise, rank_distances
from tacaf.vocabulary import InputError


def walked(distance, query_pid, gallery_pid, unique_pids, exclusion):
    """(first, AP, matches / last rank, matches, eligible) of one query, as the protocol is told."""
    order = sorted(range(len(gallery_pid)), key=lambda g: (distance[g], g))
    ranked = [g for g in order if exclusion is None or exclusion[0] != exclusion[1][g]]
    right = [gallery_pid[g] == query_pid for g in ranked]
    if not any(right):
        return 0, 0.0, 0.0, 0, len(ranked)
    places = [place for place, hit in enumerate(right, 1) if hit]
    first = places[0]
    if unique_pids:
        seen: list[int] = []
        for g in ranked:
            if gallery_pid[g] not in seen:
                seen.append(gallery_pid[g])
        first = seen.index(query_pid) + 1
    precision = sum(number / place for number, place in enumerate(places, 1)) / len(places)
    return first, precision, len(places) / places[-1], len(places), len(ranked)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("unique_pids", [False, True])
@pytest.mark.parametrize("excludes", [False, True])
def test_ranks_are_those_of_the_walked_list(seed, unique_pids, excludes):
    dice = np.random.default_rng(seed)
    queries, gallery = dice.integers(1, 9), dice.integers(1, 25)
    distance = dice.integers(0, dice.integers(2, 30), (queries, gallery)).astype(dice.choice(["f4", "f8"]))
    query_pid, gallery_pid = dice.integers(0, 5, queries), dice.integers(0, 5, gallery)
    keys = (dice.integers(0, 3, queries), dice.integers(0, 3, gallery)) if excludes else None
    before = distance.copy()
    found = rank_distances(distance, query_pid, gallery_pid, unique_pids, keys)
    assert np.array_equal(distance, before), "the caller's distances stay"
    for q in range(queries):
        own = None if keys is None else (keys[0][q], keys[1])
        expected = walked(distance[q], query_pid[q], gallery_pid, unique_pids, own)
        assert [column[q] for column in found] == pytest.approx(expected)


def test_measures_leave_out_queries_without_a_match():
    distance = np.array([[0.1, 0.2, 0.3, 0.4]] * 3)
    ranks = rank_distances(distance, np.array([7, 8, 99]), np.array([8, 7, 8, 7]), unique_pids=False)
    found = measures(ranks)
    assert set(found) == set(MEASURES)
    assert found["rank1"] == pytest.approx(1 / 2)  # 8 is first, 7 second, 99 has no match
    assert found["rank5"] == 1
    assert found["mAP"] == pytest.approx(((1 / 2 + 2 / 4) / 2 + (1 + 2 / 3) / 2) / 2)
    assert found["mINP"] == pytest.approx((2 / 4 + 2 / 3) / 2)
    with pytest.raises(InputError, match=r"queries .* got none"):
        measures(rank_distances(distance[:1], np.array([99]), np.array([8, 7, 8, 7]), unique_pids=False))


def test_chance_is_what_random_orders_give():
    dice = np.random.default_rng(0)
    query_pid, gallery_pid = dice.integers(0, 6, 40), dice.integers(0, 6, 30)
    keys = (dice.integers(0, 3, 40), dice.integers(0, 3, 30))
    drawn = [rank_distances(dice.random((40, 30)), query_pid, gallery_pid, True, keys) for _ in range(300)]
    assert np.mean([measures(one)["rank1"] for one in drawn]) == pytest.approx(chance_rank1(drawn[0]), abs=0.01)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_distances(dtype):
    dice = np.random.default_rng(1)
    query, gallery = dice.normal(size=(5, 8)).astype(dtype), dice.normal(size=(7, 8)).astype(dtype)
    for metric in ("cosine", "euclidean"):
        found = distances(normalise(query, metric), normalise(gallery, metric), metric)
        for q, g in np.ndindex(5, 7):
            x, y = query[q].astype("f8"), gallery[g].astype("f8")
            cosine = 1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y)
            assert found[q, g] == pytest.approx(cosine if metric == "cosine" else np.linalg.norm(x - y), abs=1e-5)


def test_a_zero_feature_is_far_from_everything_and_an_overflow_is_refused():
    unit = normalise(np.array([[0.0, 0.0], [3.0, 4.0]]), "cosine")
    assert distances(unit, unit, "cosine")[0].tolist() == [1, 1]
    with pytest.raises(InputError, match="got 'manhattan'"):
        normalise(unit, "manhattan")
    with pytest.raises(InputError, match="overflow"):
        normalise(np.full((1, 2), 1e200), "euclidean")
