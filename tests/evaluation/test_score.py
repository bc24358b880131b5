"""From a feature file to the score JSON: protocols, gallery draws, the promised keys, and every unusable input."""

import contextlib
import json
import random
import subprocess
import sys

import numpy as np
import pytest
import scipy.io

from perf.attacks.mutations import damaged
from tacaf.evaluation.__main__ import main
from tacaf.evaluation.features import FeatureSet, load_features
from tacaf.evaluation.gallery_draws import load_permutations
from tacaf.evaluation.score import score
from tacaf.evaluation.setting import choose_setting
from tacaf.evaluation.text import result_table
from tacaf.evaluation.trials import make_trials
from tacaf.vocabulary import InputError, Modality
from tests.evaluation.sets import permutations_file

KEYS = {
    "protocol",
    "mode",
    "direction",
    "split",
    "shots",
    "gallery_draw",
    "metric",
    "embedding",
    "embedding_width",
    "flip",
    "rerank",
    "trials",
    "mean",
    "std",
    "queries",
    "valid_queries",
    "chance_rank1",
    "trained_on",
    "seed",
    "versions",
}
SYSU = {1: "visible", 2: "visible", 3: "infrared", 4: "visible", 5: "visible", 6: "infrared"}


def arrays(pids: int = 8, images: int = 3, cameras: dict[int, str] = SYSU, seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of a feature file: `images` of each pid in each camera, in shuffled order, pids not contiguous."""
    dice = np.random.default_rng(seed)
    rows = [(3 * pid + 2, camid, n) for pid in range(pids) for camid in cameras for n in range(1, images + 1)]
    dice.shuffle(rows)
    pid, camid, number = np.array(rows).T
    directions = dice.normal(size=(3 * pids + 3, 12))
    features = directions[pid] + 2 * dice.normal(size=(len(rows), 12))
    modality = np.array([cameras[c] for c in camid.tolist()])
    return {"features": features, "pid": pid, "camid": camid, "modality": modality, "number": number}


def features_of(**options) -> FeatureSet:
    values = arrays(**options)
    codes = np.where(values["modality"] == "infrared", Modality.INFRARED.code, Modality.VISIBLE.code).astype(np.uint8)
    return FeatureSet(values["features"], values["pid"], values["camid"], codes, values["number"])


def test_the_json_holds_what_is_promised():
    known = {"split": "test", "embedding": "full", "flip": False, "trained_on": "x", "seed": 3}
    result = json.loads(json.dumps(score(features_of(), "sysu_mm01", circumstances=known).as_json()))
    assert set(result) >= KEYS
    assert {name: result[name] for name in known} == known
    assert (result["mode"], result["direction"]) == ("all_search", "infrared_to_visible")
    assert (result["shots"], result["gallery_draw"], result["embedding_width"]) == (1, "literature", 12)
    assert set(result["trials"][0]) == {"rank1", "rank5", "rank10", "rank20", "mAP", "mINP"}
    for name in result["mean"]:
        values = [trial[name] for trial in result["trials"]]
        assert result["mean"][name] == pytest.approx(sum(values) / 10)
        assert result["std"][name] == pytest.approx(np.std(values, ddof=1)), "the sample standard deviation"
    assert result["queries"] == 8 * 2 * 3
    with pytest.raises(InputError, match="circumstances"):
        score(features_of(), "sysu_mm01", circumstances={"model": 1})


@pytest.mark.parametrize(("mode", "cameras"), [("all_search", (1, 2, 4, 5)), ("indoor_search", (1, 2))])
def test_the_literature_draw_is_random_choice_over_sorted_names(mode, cameras):
    features = features_of(images=5)
    trials = make_trials(features, choose_setting("sysu_mm01", mode=mode))
    assert len(trials) == 10
    for number, trial in enumerate(trials):
        random.seed(number)
        expected = set()
        for pid in sorted(set(features.pid.tolist())):
            for camid in cameras:
                names = sorted(
                    f"{n:04d}.jpg" for n in features.number[(features.pid == pid) & (features.camid == camid)]
                )
                expected.add((pid, camid, int(random.choice(names)[:4])))
        drawn = trial.gallery_rows
        facts = zip(*(getattr(features, name)[drawn].tolist() for name in ("pid", "camid", "number")), strict=True)
        assert set(facts) == expected
        assert set(features.camid[trial.query_rows].tolist()) == {3, 6}


def test_ten_shots_take_all_there_is_and_the_result_says_the_draw_is_ours():
    result = score(features_of(images=12), "sysu_mm01", shots=10)
    assert result["gallery"] == 8 * 4 * 10
    assert "(ours)" in result["gallery_draw_note"]
    assert "(ours)" in result_table(result)
    assert score(features_of(images=3), "sysu_mm01", shots=10)["gallery"] == 8 * 4 * 3


def test_images_at_the_querys_location_are_left_out():
    """Camera 2 stands in camera 3's room: a query of camera 3 never meets it, whatever the pid."""
    values = features_of()
    at_2 = (values.camid == 2) | (values.camid == 3)
    values.features[at_2] = 0
    values.features[at_2, 0] = 1  # camera 2 and 3 look the same: rank 1 would be camera 2
    trial = make_trials(values, choose_setting("sysu_mm01", mode="indoor_search"), 1)[0]
    ranks = trial.rank("cosine", True)
    from_3 = values.camid[trial.query_rows] == 3
    assert set(ranks.eligible_Q[from_3]) == {8}, "one image of each pid, camera 1 only"
    assert set(ranks.eligible_Q[~from_3]) == {16}


@pytest.mark.parametrize(
    ("protocol", "first", "images", "trials"),
    [
        ("regdb", "visible_to_infrared", "per image", 1),
        ("llcm", "infrared_to_visible", "each pid once", 10),
        ("generic", "infrared_to_visible", "per image", 1),
    ],
)
def test_the_other_protocols(protocol, first, images, trials):
    cameras = {1: "visible", 2: "infrared", 11: "visible", 12: "infrared"}
    result = score(features_of(cameras=cameras), protocol)
    assert result["direction"] == first
    assert result["mode"] is None
    assert len(result["trials"]) == trials
    assert (result["std"]["rank1"] is None) == (trials == 1)
    text = result_table(result)
    for word in (protocol, first, images, f"chance rank-1 {100 * result['chance_rank1']:.2f}"):
        assert word in text
    turned = "infrared_to_visible" if first == "visible_to_infrared" else "visible_to_infrared"
    assert score(features_of(cameras=cameras), protocol, direction=turned)["mean"] != result["mean"]


def test_llcm_leaves_out_the_same_pid_in_the_same_camera_only():
    cameras = {1: "visible", 2: "visible"}
    both = [features_of(cameras=cameras), features_of(cameras=dict.fromkeys(cameras, "infrared"), seed=1)]
    joined = FeatureSet(
        *(
            np.concatenate([getattr(one, name) for one in both])
            for name in ("features", "pid", "camid", "modality", "number")
        )
    )
    trial = make_trials(joined, choose_setting("llcm"), 1)[0]
    assert len(trial.gallery_rows) == 16
    assert set(trial.rank("cosine", True).eligible_Q) == {15}


@pytest.mark.parametrize(("direction", "query"), [("infrared_to_visible", 1), ("visible_to_infrared", 0)])
def test_llcm_asks_with_every_image_and_draws_the_other_side(direction, query):
    """Not the drawn images asking all others, as the authors' script does from visible to infrared."""
    features = features_of(cameras={1: "visible", 2: "visible", 4: "infrared"})
    trial = make_trials(features, choose_setting("llcm", direction=direction))[3]
    assert np.array_equal(trial.query_rows, np.flatnonzero(features.modality == query))
    folders = list(zip(features.pid[trial.gallery_rows], features.camid[trial.gallery_rows], strict=True))
    assert len(set(folders)) == len(folders) == 8 * (2 if query else 1)
    assert set(features.modality[trial.gallery_rows]) == {1 - query}


def test_regdb_takes_a_file_per_split():
    cameras = {0: "visible", 7: "infrared"}
    result = score([features_of(cameras=cameras, seed=seed) for seed in range(3)], "regdb")
    assert len(result["trials"]) == 3
    assert result["std"]["mAP"] > 0
    with pytest.raises(InputError, match="under sysu_mm01, got 2"):
        score([features_of(), features_of()], "sysu_mm01")


def in_another_order(features: FeatureSet) -> FeatureSet:
    """The same set, its rows shuffled and its features of another type."""
    order = np.random.default_rng(7).permutation(len(features))
    values = {name: getattr(features, name)[order] for name in ("pid", "camid", "modality", "number")}
    return FeatureSet(features.features[order].astype(np.float32).astype(np.float64), **values)


def test_the_same_features_twice_are_not_two_splits():
    cameras = {0: "visible", 7: "infrared"}
    sets = [features_of(cameras=cameras, seed=seed) for seed in range(3)]
    for again in (sets[0], in_another_order(sets[0])):
        with pytest.raises(InputError, match="number 1 and number 4"):
            score([*sets, again], "regdb")


@pytest.mark.parametrize("protocol", ["regdb", "llcm"])
def test_a_set_of_another_kind_is_warned_of(protocol):
    result = score(features_of(), protocol)
    (warning,) = result["warnings"]
    assert protocol in warning
    assert "1, 2, 4, 5" in warning
    assert f"warning: {warning}" in result_table(result)
    own = {"regdb": {0: "visible", 7: "infrared"}, "llcm": {3: "visible", 4: "visible", 5: "infrared"}}[protocol]
    values = features_of(cameras=own)
    if protocol == "llcm":
        values = FeatureSet(**{**vars(values), "camid": np.where(values.camid == 5, 4, values.camid)})
    assert score(values, protocol)["warnings"] == []


def test_features_that_are_zero_are_counted_and_equal_ones_refused():
    values = features_of()
    values.features[[7, 30]] = 0
    result = score(values, "sysu_mm01")
    (warning,) = result["warnings"]
    assert f"2 of {len(values)} images" in warning
    assert f"first row 7: pid {values.pid[7]}" in warning
    assert f"warning: {warning}" in result_table(result)
    for value in (0, 0.25):
        values.features[:] = value
        with pytest.raises(InputError, match=f"all {len(values)} images"):
            score(values, "sysu_mm01")


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
    "modality code": (_with(modality=lambda x: (x == "infrared").astype(int)), 'words "visible"'),
    "one modality": (_with(modality=lambda x: np.full_like(x, "visible")), "no infrared"),
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


@pytest.mark.parametrize(("content", "says"), [(None, "which is no file"), (b"PK\x03\x04cut", r"readable \.npz")])
def test_no_feature_file_at_all(content, says, tmp_path):
    path = tmp_path / "F.npz"
    if content:
        path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        load_features(path)


def test_a_file_comes_back_as_it_was_saved(tmp_path):
    features = features_of()
    features.save(tmp_path / "F.npz")
    back = load_features(tmp_path / "F.npz")
    for name in ("features", "pid", "camid", "modality", "number"):
        assert np.array_equal(getattr(back, name), getattr(features, name)), name


def test_the_command_as_a_user_types_it(tmp_path):
    np.savez(tmp_path / "F.npz", **arrays())
    base = [sys.executable, "-m", "tacaf.evaluation", "score", "--features", tmp_path / "F.npz"]
    done = subprocess.run(
        [
            *base,
            "--protocol",
            "sysu_mm01",
            "--mode",
            "indoor_search",
            "--state",
            "seed=7",
            "--json",
            tmp_path / "s.json",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads((tmp_path / "s.json").read_text())
    assert (result["mode"], result["seed"]) == ("indoor_search", 7)
    assert f"{100 * result['mean']['rank1']:.2f}" in done.stdout
    assert "chance rank-1" in done.stdout
    wrong = subprocess.run([*base, "--protocol", "sysu"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: ")
    assert "Traceback" not in wrong.stderr
