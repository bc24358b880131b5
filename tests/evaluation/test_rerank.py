"""Re-ranking against its definition in plain loops over sets: ties, k beyond the set, exclusion, wrong numbers."""

import math

import numpy as np
import pytest

from tacaf.evaluation import rerank as rerank_file
from tacaf.evaluation.ranking import RankTask
from tacaf.evaluation.rerank import Distances, Rerank, rank_reranked, reranked
from tacaf.vocabulary import InputError


def told(query: np.ndarray, gallery: np.ndarray, metric: str, rerank: Rerank) -> np.ndarray:
    """The definition of rerank.py's docstring, with Python sets."""
    images = [x / np.linalg.norm(x) if metric == "cosine" else x for x in np.concatenate([query, gallery]).astype("f8")]
    everyone = range(len(images))
    d = [[float(((images[i] - images[j]) ** 2).sum()) for j in everyone] for i in everyone]
    # to 12 places, so that what is equal in exact arithmetic is equal here
    d = [[round(x, 12) for x in row] for row in d]
    lists = [sorted(everyone, key=lambda j, i=i: (j != i, d[i][j], j)) for i in everyone]
    d = [[x / (max(row) or 1) for x in row] for row in d]

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in lists[i][: k + 1] if i in lists[j][: k + 1]}

    v = []
    for i in everyone:
        own = reciprocal(i, rerank.k1)
        wide = set(own)
        for j in own:
            others = reciprocal(j, round(rerank.k1 / 2))
            if len(others & own) > 2 / 3 * len(others):
                wide |= others
        row = [math.exp(-d[i][j]) if j in wide else 0.0 for j in everyone]
        v.append(np.array(row) / sum(row))
    v = [np.mean([v[j] for j in lists[i][: rerank.k2]], axis=0) for i in everyone]
    found = np.empty((len(query), len(gallery)))
    for q, g in np.ndindex(found.shape):
        other = len(query) + g
        s = sum(min(a, b) for a, b in zip(v[q], v[other], strict=True))
        found[q, g] = (1 - rerank.weight) * (1 - s / (2 - s)) + rerank.weight * d[q][other]
    return found


def fast(query: np.ndarray, gallery: np.ndarray, metric: str, rerank: Rerank) -> np.ndarray:
    original = Distances.of(np.concatenate([query, gallery]), metric)
    return np.concatenate([part for _, part in reranked(original, len(query), rerank)])


NUMBERS = [Rerank(), Rerank(5, 3, 0.3), Rerank(7, 1, 0.0), Rerank(1, 2, 0.5), Rerank(3, 9, 1.0), Rerank(500, 400, 0.3)]


@pytest.mark.parametrize("rerank", NUMBERS)
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_the_fast_one_is_the_definition(rerank, metric, kept, monkeypatch):
    monkeypatch.setattr(rerank_file, "_CHUNK_ELEMENTS", 97)
    monkeypatch.setattr(rerank_file, "_MATRIX_ELEMENTS", kept)
    dice = np.random.default_rng(rerank.k1)
    centres = dice.normal(size=(6, 8))
    query, gallery = (centres[dice.integers(0, 6, n)] + 0.7 * dice.normal(size=(n, 8)) for n in (13, 29))
    expected = told(query, gallery, metric, rerank)
    assert np.abs(fast(query, gallery, metric, rerank) - expected).max() < 1e-9
    single = fast(query.astype("f4"), gallery.astype("f4"), metric, rerank)
    assert np.abs(single - expected).max() < 1e-5, "float32 features round distances, not neighbourhoods"


@pytest.mark.parametrize("seed", range(4))
def test_equal_distances_stand_in_the_order_of_the_images(seed):
    """Whole numbers of few values: most neighbourhoods end among equals, and some images are there twice."""
    dice = np.random.default_rng(seed)
    query, gallery = (dice.integers(0, 3, (n, 3)).astype("f8") for n in (9, 21))
    for rerank in (Rerank(4, 3, 0.3), Rerank(6, 2, 0.1)):
        expected = told(query, gallery, "euclidean", rerank)
        assert np.abs(fast(query, gallery, "euclidean", rerank) - expected).max() < 1e-9


def test_all_images_equal_and_one_image():
    same = np.ones((3, 4))
    assert np.abs(fast(same, same, "cosine", Rerank()) - told(same, same, "cosine", Rerank())).max() < 1e-9
    assert fast(same[:1], same[:1], "euclidean", Rerank()) == pytest.approx(0)


def test_excluded_images_help_to_rerank_but_are_not_ranked():
    dice = np.random.default_rng(3)
    query, gallery = dice.normal(size=(8, 6)), dice.normal(size=(20, 6))
    query_pid, gallery_pid = dice.integers(0, 4, 8), dice.integers(0, 4, 20)
    keys = (np.zeros(8, int), (np.arange(20) < 6).astype(int) - 1)  # the first six images only are not at -1
    task = RankTask(query_pid=query_pid, gallery_pid=gallery_pid, metric="cosine", unique_pids=False, exclusion=keys)
    found = rank_reranked(query, gallery, task, Rerank(5, 3, 0.3))
    assert set(found.eligible_Q) == {14}
    distance = told(query, gallery, "cosine", Rerank(5, 3, 0.3))
    for q in range(8):
        ranked = [g for g in np.argsort(distance[q], kind="stable") if g >= 6]
        right = [place for place, g in enumerate(ranked, 1) if gallery_pid[g] == query_pid[q]]
        assert found.first_Q[q] == (right[0] if right else 0)


@pytest.mark.parametrize(
    "words",
    [
        ["20"],
        ["20", "6"],
        ["0", "6", "0.3"],
        ["20", "0", "0.3"],
        ["20", "6", "1.5"],
        ["a", "6", "0.3"],
        ["2.5", "6", "0.3"],
        ["20", "6", "nan"],
        ["inf", "6", "0.3"],
        ["20", "6", "0.3", "1"],
    ],
)
def test_wrong_numbers_are_refused(words):
    with pytest.raises(InputError, match="K1 K2 LAMBDA"):
        Rerank.of(words)


def test_the_numbers_as_words():
    assert Rerank.of([]) == Rerank(20, 6, 0.3)
    assert Rerank.of(["10", "3", "0.25"]).facts == {"k1": 10, "k2": 3, "lambda": 0.25}
