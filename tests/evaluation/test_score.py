"""From a feature file to the score JSON: protocols, gallery draws, the promised keys, and every unusable input."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest

from tacaf.evaluation.features import FeatureSet, load_features
from tacaf.evaluation.score import score
from tacaf.evaluation.setting import choose_setting
from tacaf.evaluation.text import result_table
from tacaf.evaluation.trials import make_trials
from tacaf.vocabulary import InputError, Modality

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
        with pytest.raises(InputError, match="file 1 and file 4"):
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
