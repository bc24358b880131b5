"""What scoring refuses: damaged permutations and features, unknown facts, options that a protocol does not have."""

import contextlib
import json

import numpy as np
import pytest
import scipy.io

from perf.attacks.mutations import damaged
from tacaf.evaluation.__main__ import main
from tacaf.evaluation.features import load_features
from tacaf.evaluation.gallery_draws import load_permutations
from tacaf.evaluation.score import score
from tacaf.vocabulary import InputError
from tests.evaluation.sets import permutations_file
from tests.evaluation.test_score import arrays, features_of


def test_splits_without_the_permutations_are_refused(tmp_path):
    """A literature draw would score without a word."""
    (tmp_path / "test_id.mat").write_bytes(b"x")
    for options in ({}, {"gallery_draw": "official"}, {"gallery_draw": "literature"}):
        with pytest.raises(InputError, match=r"rand_perm_cam\.mat .* got test_id\.mat"):
            score(features_of(), "sysu_mm01", splits=tmp_path, **options)
    with pytest.raises(InputError, match=r"/none\b"):
        score(features_of(), "sysu_mm01", splits=tmp_path / "none")
    with pytest.raises(InputError, match=rf"regdb.*{tmp_path.name}"):
        score(features_of(cameras={0: "visible", 7: "infrared"}), "regdb", splits=tmp_path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("count", "seed"), [(300, 0), pytest.param(10_000, 1, marks=pytest.mark.long)])
def test_a_damaged_permutation_file_is_one_error(tmp_path, packed, count, seed):
    path = tmp_path / "rand_perm_cam.mat"
    tables = [np.array([[1, 2, 3], [3, 1, 2]], kind) for kind in ("u1", "i4", "f8")] + [
        np.empty((0, 0)),
        np.ones((9, 1)),
    ]
    permutations_file(path, tables, do_compression=packed)
    for table, own in zip(load_permutations(path)[0, 0].ravel(), tables, strict=True):
        assert np.array_equal(table, own)
    for _, data in damaged(path.read_bytes(), count, seed):
        path.write_bytes(data)
        with contextlib.suppress(InputError):
            load_permutations(path)


def test_a_permutation_file_of_another_form_is_refused(tmp_path):
    path = tmp_path / "rand_perm_cam.mat"
    for content in (b"", b"hello", bytes(128), bytes(200), b"x" * 126 + b"IM", b"x" * 126 + b"IM" + b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"rand_perm_cam\.mat"):
            load_permutations(path)
    scipy.io.savemat(path, {"rand_perm_cam": np.ones((2, 2))})
    with pytest.raises(InputError, match="not a cell array"):
        load_permutations(path)
    for wrong in (np.array([[1, 2, 2]]), np.array([[0, 1, 2]]), np.array([[1.5, 2, 3]]), np.array([["a"]])):
        permutations_file(path, [wrong])
        with pytest.raises(InputError, match=r"rand_perm_cam\.mat"):
            load_permutations(path)


@pytest.mark.parametrize(
    "word",
    [
        "seed=NaN",
        "seed=Infinity",
        "seed=-Infinity",
        "seed=1e999",
        "seed=true",
        "seed=" + "9" * 5000,
        "seed=1" + "0" * 30,
        "seed=[" + "[" * 5000,
        "seed=[[1]]",
        'trained_on={"a": {"b": 1}}',
        'trained_on={"a": 1, "a": 2}',
        "trained_on=[]",
        "trained_on=[1]",
        "split=[]",
        "flip=yes",
        "flip=3",
        "versions=3",
        'versions={"a": 3}',
        "embedding_width=0",
        "embedding_width=12.5",
        "=3",
        "seed",
        "model=1",
        'embedding=["full"]',
        "split=" + "x" * 5000,
    ],
)
def test_a_state_that_is_no_fact_is_refused(word, tmp_path, capsys):
    np.savez(tmp_path / "F.npz", **arrays())
    assert main(["score", "--features", str(tmp_path / "F.npz"), "--protocol", "sysu_mm01", "--state", word]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert len(error) < 500


def test_a_state_is_given_once_and_may_be_json_or_text(tmp_path, capsys):
    np.savez(tmp_path / "F.npz", **arrays())
    words = ["score", "--features", str(tmp_path / "F.npz"), "--protocol", "sysu_mm01", "--json", str(tmp_path / "s")]
    given = {"split": "test_3", "flip": "true", "seed": "-3", "trained_on": '[{"split": "train_1"}, {"set": "x"}]'}
    given |= {"embedding": "full", "versions": '{"torch": null}', "scored_on": "null"}
    assert main([*words, *(part for key, text in given.items() for part in ("--state", f"{key}={text}"))]) == 0
    result = json.loads((tmp_path / "s").read_text())
    assert (result["split"], result["flip"], result["seed"], result["scored_on"]) == ("test_3", True, -3, None)
    assert main([*words, "--state", "seed=1", "--state", "seed=2"]) == 2
    assert "seed once" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"protocol": "market"}, "expected protocol sysu_mm01 or regdb or llcm or generic, got 'market'"),
        ({"mode": "outdoor"}, "expected mode all_search or indoor_search"),
        ({"direction": "visible_to_infrared"}, "expected direction infrared_to_visible under sysu_mm01"),
        ({"shots": 5}, "expected shots 1 or 10"),
        ({"gallery_draw": "official"}, r"rand_perm_cam\.mat"),
        ({"gallery_draw": "best"}, "draw official or literature"),
        ({"protocol": "regdb", "gallery_draw": "literature"}, "draw none under regdb"),
        ({"protocol": "regdb", "mode": "all_search"}, "no mode under regdb"),
        ({"metric": "manhattan"}, "metric .* got 'manhattan'"),
        ({"trials": 0}, "at least 1 trial"),
        ({"unique_ids": False}, "unique ids True"),
    ],
)
def test_what_a_protocol_does_not_define_is_refused(options, says):
    with pytest.raises(InputError, match=says):
        score(features_of(), **{"protocol": "sysu_mm01", **options})


def _with(**changed):
    return lambda values: {**values, **{name: change(values[name]) for name, change in changed.items()}}


def _spoil(values, row, column, value):
    values[row, column] = value
    return values


BAD_FILES = {
    "NaN": (_with(features=lambda x: _spoil(x, 4, 2, np.nan)), "1 rows, first row 4"),
    "infinity": (_with(features=lambda x: _spoil(x, 0, 0, np.inf)), "got NaN or infinity"),
    "lengths": (_with(pid=lambda x: x[:-1]), "144 values in pid"),
    "missing array": (lambda v: {name: v[name] for name in v if name != "number"}, "add number"),
    "flat features": (_with(features=lambda x: x[:, 0]), r"shape \[images, width\]"),
    "no images": (lambda v: {name: x[:0] for name, x in v.items()}, "empty features"),
    "whole features": (_with(features=lambda x: x.astype(int)), "floating-point"),
    "fractional pid": (_with(pid=lambda x: x + 0.5), "whole numbers in pid"),
    "modality word": (_with(modality=lambda x: np.where(x == "infrared", "thermal", x)), "got 'thermal' in row"),
    "modality code": (_with(modality=lambda x: (x == "infrared").astype(int)), '"visible" and "infrared" as text'),
    "one modality": (_with(modality=lambda x: np.full_like(x, "visible")), "expected infrared images"),
    "twice": (_with(number=lambda x: np.ones_like(x)), "expected each image once"),
    "pickled": (_with(pid=lambda x: x.astype(object)), "without pickled objects"),
    "camera": (_with(camid=lambda x: np.where(x == 4, 9, x)), "cameras 1 or 2 or 4 or 5"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_an_unusable_feature_file_is_one_clear_error_and_loses_nothing(name, tmp_path, capsys):
    change, says = BAD_FILES[name]
    path, out = tmp_path / "F.npz", tmp_path / "out.json"
    np.savez(path, **change(arrays()))
    out.write_text("kept")
    assert main(["score", "--features", str(path), "--protocol", "sysu_mm01", "--json", str(out)]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    with pytest.raises(InputError, match=says):
        score(load_features(path), "sysu_mm01")
    assert shown.out == ""
    assert out.read_text() == "kept"
    assert sorted(tmp_path.iterdir()) == [path, out]


@pytest.mark.parametrize(
    ("content", "says"), [(None, "does not exist or is not a file"), (b"PK\x03\x04cut", r"readable \.npz")]
)
def test_no_feature_file_at_all(content, says, tmp_path):
    path = tmp_path / "F.npz"
    if content:
        path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        load_features(path)
