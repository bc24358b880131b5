"""A gallery read tile by tile ranks as one in memory does, bit for bit: ties, exclusion, pids across tiles, files."""

import numpy as np
import pytest

from tacaf.evaluation import features, trials
from tacaf.evaluation import rank_streamed as streaming
from tacaf.evaluation.__main__ import main
from tacaf.evaluation.features import read_rows
from tacaf.evaluation.rank_streamed import rank_streamed
from tacaf.evaluation.ranking import RankTask, rank_features
from tacaf.vocabulary import InputError
from tests.evaluation.test_score import arrays


def exact_features(dice: np.random.Generator, images: int) -> np.ndarray:
    """Signs and zeros, 4 of 16 not zero: lengths and products have no rounding, and many images are equally far."""
    found = np.zeros((images, 16), np.float32)
    for row in found:
        row[dice.choice(16, 4, replace=False)] = dice.choice([-1, 1], 4)
    return found


def case_of(seed: int, exact: bool) -> dict:
    dice = np.random.default_rng(seed)
    queries, gallery, pids = dice.integers(1, 40), dice.integers(1, 120), dice.integers(1, 15)
    stored = exact_features(dice, 150) if exact else dice.normal(size=(150, 16)).astype(dice.choice(["f4", "f8"]))
    query = exact_features(dice, queries) if exact else dice.normal(size=(queries, 16)).astype(stored.dtype)
    return {
        "query": query,
        "stored": stored,
        "rows": dice.permutation(150)[:gallery],
        "query_pid": dice.integers(-2, pids, queries),
        "gallery_pid": dice.integers(0, pids, gallery),
        "keys": (dice.integers(0, 3, queries), dice.integers(0, 3, gallery)),
    }


def task_of(case: dict, **changes) -> RankTask:
    usual = {"metric": "cosine", "unique_pids": False}
    return RankTask(**{"query_pid": case["query_pid"], "gallery_pid": case["gallery_pid"], **usual, **changes})


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_ranks_are_those_of_the_gallery_in_memory(seed, exact, metric, monkeypatch):
    monkeypatch.setattr(streaming, "TILE", (7, 11))
    monkeypatch.setattr(streaming, "STRIP", 3)
    case = case_of(seed, exact)
    for unique_pids in (False, True):
        for keys in (None, case["keys"]):
            task = task_of(case, metric=metric, unique_pids=unique_pids, exclusion=keys)
            expected = rank_features(case["query"], case["stored"][case["rows"]], task)
            found = rank_streamed(case["query"], case["stored"], case["rows"], task)
            for name, column in expected._asdict().items():
                assert np.array_equal(getattr(found, name), column), name
                assert getattr(found, name).dtype == column.dtype, name


def test_the_cases_have_ties_that_the_gallery_order_decides():
    """Or the test above would say nothing about them."""
    decided = 0
    for seed in range(25):
        case = case_of(seed, True)
        gallery = case["stored"][case["rows"]]
        forward = rank_features(case["query"], gallery, task_of(case))
        turned = task_of(case, gallery_pid=case["gallery_pid"][::-1])
        backward = rank_features(case["query"], gallery[::-1], turned)
        decided += not np.array_equal(forward.first_Q, backward.first_Q)
    assert decided > 10


@pytest.mark.parametrize("rows", [[3, 4, 5], [9, 0, 4, 4], []])
def test_rows_of_a_file_are_read_in_the_order_asked_for(rows, tmp_path):
    values = np.random.default_rng(0).normal(size=(10, 3)).astype("f4")
    np.save(tmp_path / "g.npy", values)
    mapped = np.load(tmp_path / "g.npy", mmap_mode="r")
    found = read_rows(mapped, np.array(rows, dtype=np.int64))
    assert np.array_equal(found, values[rows])
    assert np.array_equal(mapped, values), "the map can still be read"


@pytest.mark.parametrize("stored", ["uncompressed", "compressed", "columns first"])
def test_score_streams_a_large_gallery_from_its_file(stored, tmp_path, monkeypatch):
    """And finds what it finds in memory, whatever way the file was written."""
    values = arrays(images=4)
    values["features"] = values["features"].astype("f4")
    if stored == "columns first":
        values["features"] = np.asfortranarray(values["features"])
    (np.savez_compressed if stored == "compressed" else np.savez)(tmp_path / "F.npz", **values)
    command = ["score", "--features", str(tmp_path / "F.npz"), "--protocol", "generic", "--json"]
    assert main([*command, str(tmp_path / "memory.json")]) == 0
    used = []
    monkeypatch.setattr(features, "LARGE_BYTES", 100)
    monkeypatch.setattr(trials, "LARGE_BYTES", 100)
    monkeypatch.setattr(trials, "rank_streamed", lambda *args: used.append(args[1]) or rank_streamed(*args))
    assert main([*command, str(tmp_path / "streamed.json")]) == 0
    assert (tmp_path / "streamed.json").read_bytes() == (tmp_path / "memory.json").read_bytes()
    assert [isinstance(one, np.memmap) for one in used] == [stored != "compressed"]


def test_nan_in_a_mapped_file_is_named(tmp_path, monkeypatch):
    values = arrays(images=4)
    values["features"][77, 3] = np.nan
    np.savez(tmp_path / "F.npz", **values)
    monkeypatch.setattr(features, "LARGE_BYTES", 100)
    with pytest.raises(InputError, match="1 rows, first row 77"):
        features.load_features(tmp_path / "F.npz")


def test_a_device_that_is_not_there_is_refused():
    case = case_of(0, True)
    with pytest.raises(InputError, match="abacus"):
        rank_streamed(case["query"], case["stored"], case["rows"], task_of(case), device="abacus")
