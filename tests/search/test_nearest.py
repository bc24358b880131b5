"""The nearest images: exact against a slow loop with stable ties, FAISS against exact."""

import numpy as np
import pytest

from tacaf.search import nearest as module
from tacaf.search.nearest import choose_engine, nearest
from tacaf.vocabulary import InputError


def unit(rows: int, width: int = 6, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def by_loop(query_QD: np.ndarray, gallery_GD: np.ndarray, k: int) -> list[list[int]]:
    lists = []
    for query in query_QD.tolist():
        distances = [round(1 - sum(a * b for a, b in zip(query, row, strict=True)), 5) for row in gallery_GD.tolist()]
        lists.append(sorted(range(len(distances)), key=lambda g, d=distances: (d[g], g))[:k])
    return lists


@pytest.mark.parametrize("k", [1, 7, 40, 99])
def test_exact_is_a_stable_sort_in_pieces_of_any_size(monkeypatch, k):
    monkeypatch.setattr(module, "_BLOCK", (3, 5))
    gallery_GD = np.concatenate([unit(20), unit(20)])  # every image twice
    query_QD = unit(8, seed=1)
    rows_QK, distance_QK = nearest(query_QD, gallery_GD, k, "exact")
    assert rows_QK.tolist() == by_loop(query_QD, gallery_GD, k)
    assert (np.diff(distance_QK, axis=1) >= 0).all()
    expected = 1 - np.einsum("qd,qkd->qk", query_QD, gallery_GD[rows_QK])
    np.testing.assert_allclose(distance_QK, expected, atol=2e-6)


def test_no_queries_give_no_lists():
    rows_QK, distance_QK = nearest(unit(0), unit(4), 3, "exact")
    assert rows_QK.shape == distance_QK.shape == (0, 3)


def test_faiss_equals_exact():
    pytest.importorskip("faiss", reason="pip install -e '.[faiss]'")
    query_QD, gallery_GD = unit(9, 32, seed=1), unit(300, 32)
    gallery_GD[200] = gallery_GD[100]
    query_QD[0] = gallery_GD[100]  # an equal in the middle of the list
    for k in (5, 300, 999):
        exact, faiss = (nearest(query_QD, gallery_GD, k, engine) for engine in ("exact", "faiss"))
        np.testing.assert_allclose(exact[1], faiss[1], atol=2e-6)
        np.testing.assert_array_equal(exact[0][:, :3], faiss[0][:, :3])


def test_the_engine_goes_by_size_and_what_is_installed(monkeypatch):
    monkeypatch.setattr(module, "FAISS_FROM", 10)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object())
    assert [choose_engine("auto", 9), choose_engine("auto", 10), choose_engine("exact", 10)] == [
        "exact",
        "faiss",
        "exact",
    ]
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert choose_engine("auto", 10) == "exact"
    with pytest.raises(InputError, match=r"\[faiss\]"):
        choose_engine("faiss", 10)
