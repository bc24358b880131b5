"""What the report's pictures are made of: chosen queries, pairs of images by number, CMC, the map; against loops."""

import numpy as np
import pytest

from tacaf.evaluation.ranking import Ranks
from tacaf.evaluation.setting import choose_setting
from tacaf.evaluation.trials import make_trials
from tacaf.report import examples
from tacaf.report.embedding_map import IDENTITIES, IMAGES, map_embeddings
from tacaf.report.examples import BEST, DRAWN, WORST, choose_pairs, choose_queries, choose_ranked_lists
from tacaf.report.figures import cmc, draw_distances, draw_map
from tacaf.report.pair_distances import KINDS, PairKind, _pairs, sample_distances
from tests.evaluation.sets import feature_set

SETTING = choose_setting("sysu_mm01")


def trial_and_ranks(**changes):
    trial = make_trials(feature_set(**changes), SETTING, 1)[0]
    return trial, trial.rank("cosine", True)


def unit(features):
    return features.features / np.linalg.norm(features.features, axis=1, keepdims=True)


@pytest.mark.parametrize("piece", [5, examples.PIECE], ids=["in pieces", "at once"])
def test_ranked_lists_are_the_nearest_eligible_gallery_images(monkeypatch, piece):
    monkeypatch.setattr(examples, "PIECE", piece)
    trial, ranks = trial_and_ranks()
    lists = choose_ranked_lists(trial, ranks, "cosine", n=5, shown=4, seed=0)[DRAWN]
    assert len(lists) == len({one.query for one in lists}) == 5
    features, unit_ND = trial.features, unit(trial.features)
    for one in lists:
        camera = features.camid[one.query]
        eligible = [g for g in trial.gallery_rows.tolist() if not (camera == 3 and features.camid[g] == 2)]
        wanted = sorted(eligible, key=lambda g: 1 - float(unit_ND[one.query] @ unit_ND[g]))
        assert [row for row, _ in one.matches] == wanted[:4]
        for row, distance in one.matches:
            assert distance == pytest.approx(1 - float(unit_ND[one.query] @ unit_ND[row]), abs=1e-5)
        places = [k for k, g in enumerate(wanted, 1) if features.pid[g] == features.pid[one.query]]
        assert one.average_precision == pytest.approx(np.mean([j / k for j, k in enumerate(places, 1)]))


def test_the_drawn_queries_depend_on_the_seed_alone():
    queries = [choose_queries(*trial_and_ranks(seed=s), 6, seed)[DRAWN] for s, seed in ((0, 0), (1, 0), (0, 1))]
    assert queries[0] == queries[1], "other features, the same queries"
    assert queries[0] != queries[2]


def test_best_and_worst_are_extremes_of_different_identities():
    trial, ranks = trial_and_ranks(noise=2.0)
    chosen = choose_queries(trial, ranks, 5, seed=0)
    pid_Q, precision_Q = trial.features.pid[trial.query_rows], ranks.average_precision_Q
    for kind, extreme in ((BEST, np.max), (WORST, np.min)):
        of_identity = [extreme(precision_Q[pid_Q == pid]) for pid in np.unique(pid_Q)]
        wanted = sorted(of_identity, reverse=kind == BEST)[:3]
        assert precision_Q[chosen[kind]].tolist() == wanted
        assert len(set(pid_Q[chosen[kind]].tolist())) == 3


def test_queries_without_a_match_are_never_shown():
    trial, ranks = trial_and_ranks()
    lost = ranks._replace(matches_Q=np.where(np.arange(len(ranks.matches_Q)) < 20, 0, ranks.matches_Q))
    chosen = choose_queries(trial, lost, 30, seed=0)
    assert len(chosen[DRAWN]) == 4
    assert all(place >= 20 for places in chosen.values() for place in places)


def test_a_report_without_ranked_lists_has_no_pairs_either():
    trial, ranks = trial_and_ranks()
    assert choose_ranked_lists(trial, ranks, "cosine", n=0, shown=4, seed=0) == {DRAWN: [], BEST: [], WORST: []}
    assert choose_pairs(trial, ranks, "cosine", 0, seed=0) == []


def test_pairs_are_the_nearest_right_and_the_nearest_wrong_image():
    trial, ranks = trial_and_ranks(noise=2.0)
    unit_ND, pid = unit(trial.features), trial.features.pid
    for one in choose_pairs(trial, ranks, "cosine", 4, seed=0):
        for found, same in ((one.right, True), (one.wrong, False)):
            others = [
                g
                for g in trial.gallery_rows.tolist()
                if (pid[g] == pid[one.query]) == same
                and not (trial.features.camid[one.query] == 3 and trial.features.camid[g] == 2)
            ]
            assert found == min(others, key=lambda g: 1 - float(unit_ND[one.query] @ unit_ND[g]))


def test_cmc_counts_matches_up_to_a_rank():
    ranks = Ranks(np.array([1, 3, 2, 0, 9]), np.zeros(5), np.zeros(5), np.array([1, 2, 1, 0, 1]), np.full(5, 9))
    np.testing.assert_allclose(cmc(ranks, 4), [1 / 4, 2 / 4, 3 / 4, 3 / 4])


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_pair_of_a_kind_has_a_number(kind):
    features = feature_set(pids=3)
    first_P, second_P = _pairs(features, kind, seed=0, most=10**6, step=0)
    wanted = [
        (a, b)
        for a in range(len(features))
        for b in range(len(features))
        if a != b
        and (features.pid[a] == features.pid[b]) == kind.same
        and (features.modality[a] != features.modality[b]) == kind.across
        and (not kind.across or features.modality[a] == 0)
    ]
    assert sorted(zip(first_P.tolist(), second_P.tolist(), strict=True)) == wanted


def test_a_sample_is_drawn_by_the_seed_from_all_pairs():
    features = feature_set(pids=5)
    whole, some = (sample_distances(features, "cosine", 0, most) for most in (10**6, 300))
    for kind in KINDS:
        assert len(some[kind]) == min(300, len(whole[kind]))
        assert np.isin(some[kind].round(6), whole[kind].round(6)).all()
    wide = PairKind(False, False)
    assert not np.array_equal(some[wide], sample_distances(features, "cosine", 1, 300)[wide])
    assert abs(some[wide].mean() - whole[wide].mean()) < 4 * whole[wide].std() / 300**0.5


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_distances_of_pairs_are_the_scoring_s(metric):
    features = feature_set(pids=2)
    found = sample_distances(features, metric, 0)[PairKind(True, True)]
    rows = features.features.astype(np.float64)
    if metric == "cosine":
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    expected = [
        1 - a @ b if metric == "cosine" else np.linalg.norm(a - b)
        for a, pid, m in zip(rows, features.pid, features.modality, strict=True)
        for b, other, n in zip(rows, features.pid, features.modality, strict=True)
        if pid == other and m == 0 and n == 1
    ]
    np.testing.assert_allclose(np.sort(found), np.sort(expected), atol=1e-6)


def test_a_set_of_one_modality_has_distances_within_it_only():
    features = feature_set(pids=2)
    keep = features.modality == 0
    alone = type(features)(*(getattr(features, name)[keep] for name in features.__dataclass_fields__))
    samples = sample_distances(alone, "cosine", 0)
    assert {kind for kind, values in samples.items() if len(values)} == {PairKind(s, False) for s in (True, False)}
    assert "across" not in draw_distances(samples, "cosine")
    assert len(map_embeddings(alone, "cosine", 0).pid_N) == 16


@pytest.mark.slow
def test_the_map_keeps_identities_together_and_repeats_itself():
    points = map_embeddings(feature_set(pids=30, noise=0.1), "cosine", seed=0)
    assert points.method == "t-SNE"
    pids, counts = np.unique(points.pid_N, return_counts=True)
    assert len(pids) == IDENTITIES
    assert counts.max() <= 2 * IMAGES
    gap_NN = np.linalg.norm(points.xy_N2[:, None] - points.xy_N2[None], axis=2) + 1e9 * np.eye(len(points.pid_N))
    assert (points.pid_N[gap_NN.argmin(axis=1)] == points.pid_N).all()
    again = map_embeddings(feature_set(pids=30, noise=0.1), "cosine", seed=0)
    np.testing.assert_array_equal(points.xy_N2, again.xy_N2)
    assert draw_map(points) == draw_map(again)


def test_few_or_equal_points_are_laid_out_without_t_sne():
    one = map_embeddings(feature_set(pids=1, width=1), "euclidean", seed=0)
    assert one.method == "principal components"
    assert one.xy_N2.shape == (12, 2)
    same = feature_set(pids=4)
    same.features[:] = 1
    flat = map_embeddings(same, "cosine", seed=0)
    assert flat.method == "principal components"
    assert np.isfinite(flat.xy_N2).all()
