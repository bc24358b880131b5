"""The protocol for a set of one's own: lists, what is left out, search within one modality, and what is refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tacaf.evaluation.__main__ import main
from tacaf.evaluation.features import FeatureSet
from tacaf.evaluation.image_lists import ImageList
from tacaf.evaluation.options import locations_of
from tacaf.evaluation.score import score
from tacaf.evaluation.setting import choose_setting
from tacaf.evaluation.trials import make_trials
from tacaf.vocabulary import InputError, Modality, sample_key
from tests.evaluation.test_score import arrays, features_of

CAMERAS = {1: "visible", 2: "visible", 3: "infrared", 4: "infrared"}


def trial_of(features: FeatureSet, **choices):
    return make_trials(features, choose_setting("generic", **choices))[0]


def key(features: FeatureSet, row: int) -> str:
    modality = Modality.of_code(features.modality[row])
    return sample_key(modality, *(int(getattr(features, name)[row]) for name in ("pid", "camid", "number")))


def write_list(path: Path, features: FeatureSet, rows) -> Path:
    path.write_text("# whom to look for\n\n" + "\n".join(key(features, row) for row in rows) + "\n")
    return path


@pytest.mark.parametrize("modality", ["visible", "infrared"])
def test_within_one_modality_nobody_finds_himself(modality):
    features = features_of(cameras=CAMERAS)
    trial = trial_of(features, direction=f"{modality}_to_{modality}")
    ranks = trial.rank("cosine", False)
    assert np.array_equal(trial.query_rows, trial.gallery_rows)
    assert set(ranks.eligible_Q) == {len(trial.query_rows) - 1}
    assert set(ranks.matches_Q) == {2 * 3 - 1}
    result = score(features, "generic", direction=f"{modality}_to_{modality}")
    assert result["exclusion"] == "the query image itself"
    assert score(features, "generic")["exclusion"] == "none"


def test_one_camera_of_a_modality_leaves_no_match_once_it_is_excluded():
    features = features_of(cameras={1: "visible", 3: "infrared"})
    with pytest.raises(InputError, match=r"got none; .*--exclude leaves out every match .*own camera"):
        score(features, "generic", direction="infrared_to_infrared", exclude="camera")


@pytest.mark.parametrize(
    ("exclude", "locations", "eligible"),
    [
        ("none", {}, {1: 47, 2: 47}),
        ("camera", {}, {1: 24, 2: 24}),
        ("location", {1: 7, 2: 7, 3: 7}, {1: 0, 2: 0}),
        ("location", {1: 1, 2: 9}, {1: 24, 2: 24}),
        ("pid_and_camera", {}, {1: 45, 2: 45}),
    ],
)
def test_what_is_left_out_of_a_list(exclude, locations, eligible):
    """8 pids, 3 images each in each of two cameras."""
    trial = trial_of(features_of(cameras=CAMERAS), direction="visible_to_visible", exclude=exclude, locations=locations)
    camera_Q, eligible_Q = trial.features.camid[trial.query_rows], trial.rank("cosine", False).eligible_Q
    assert {camera: set(eligible_Q[camera_Q == camera]) for camera in (1, 2)} == {c: {n} for c, n in eligible.items()}


def test_lists_narrow_a_direction_or_stand_for_one(tmp_path):
    features = features_of(cameras=CAMERAS)
    visible, infrared = (np.flatnonzero(features.modality == code) for code in (0, 1))
    asking = write_list(tmp_path / "q.txt", features, infrared[[5, 3]])
    narrowed = trial_of(features, query_list=asking)
    assert narrowed.query_rows.tolist() == sorted(infrared[[5, 3]])
    assert np.array_equal(narrowed.gallery_rows, visible)
    mixed = write_list(tmp_path / "g.txt", features, [*infrared[:9], *visible[:9]])
    both = trial_of(features, query_list=asking, gallery_list=mixed)
    assert len(both.gallery_rows) == 18
    assert set(both.rank("cosine", False).eligible_Q) == {17}, "both queries are in the gallery"
    result = score(features, "generic", query_list=asking, gallery_list=mixed)
    assert result["direction"] == "listed"
    assert result["query_list"]["images"] == 2
    assert result["gallery_list"]["file"] == "g.txt"
    with pytest.raises(InputError, match=r"visible images .* got infrared_"):
        trial_of(features, direction="infrared_to_visible", query_list=asking, gallery_list=mixed)


def test_a_list_that_cannot_be_used(tmp_path):
    features, path = features_of(cameras=CAMERAS), tmp_path / "list.txt"
    for text, says in (
        ("visible_0002_c1_0001\nvisible_2_c1_1\n", "line 2: .* visible_2_c1_1 as in line 1"),
        ("0002_c1_0001.jpg\n", "line 1: "),
        ("# nothing\n", "at least one key"),
        ("visible_0002_c9_0001\n", "got visible_0002_c9_0001"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=says):
            trial_of(features, gallery_list=path)
    with pytest.raises(InputError, match=r"none\.txt"):
        trial_of(features, query_list=tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("protocol", "options", "says"),
    [
        ("generic", {"exclude": "location"}, "--exclude location .* --locations"),
        ("generic", {"locations": {1: 1}}, "--exclude location .* --locations"),
        ("generic", {"exclude": "pid"}, "exclude .* got 'pid'"),
        ("generic", {"direction": "listed"}, "direction listed"),
        ("generic", {"exclude": "location", "locations": {1: 1, 2: 1, 3: 2}}, "got none for camera 4"),
        ("regdb", {"exclude": "camera"}, "no --exclude .* under regdb"),
        ("llcm", {"query_list": Path("x")}, "lists .* under llcm"),
        ("regdb", {"direction": "visible_to_visible"}, "direction .* got 'visible_to_visible'"),
    ],
)
def test_what_does_not_go_together_is_refused(protocol, options, says):
    with pytest.raises(InputError, match=says):
        score(features_of(cameras=CAMERAS), protocol, **options)


def test_a_modality_that_is_not_there_and_nobody_to_be_found():
    only = features_of(cameras={1: "visible", 2: "visible"})
    assert score(only, "generic", direction="visible_to_visible")["queries"] == 48
    with pytest.raises(InputError, match=r"expected infrared images .* none among 48"):
        score(only, "generic")
    with pytest.raises(InputError, match=r"queries .* got none"):
        score(
            features_of(cameras={1: "visible", 2: "infrared"}, images=1),
            "generic",
            exclude="location",
            locations={1: 1, 2: 1},
        )


def test_the_command(tmp_path, capsys):
    np.savez(tmp_path / "F.npz", **arrays(cameras=CAMERAS))
    base = ["score", "--features", str(tmp_path / "F.npz"), "--protocol", "generic", "--json", str(tmp_path / "s.json")]
    words = ["--exclude", "location", "--locations", "1=1", "2=1", "3=2", "4=3", "--rerank", "5", "2", "0.5"]
    assert main([*base, *words]) == 0
    shown = capsys.readouterr().out
    assert "excluded: same location" in shown
    assert "re-ranked (k1 5, k2 2, lambda 0.5)" in shown
    result = json.loads((tmp_path / "s.json").read_text())
    assert result["locations"] == {"1": 1, "2": 1, "3": 2, "4": 3}
    for wrong, says in ((["--locations", "1:1"], "CAMID=LOCATION"), (["--locations", "1=1", "1=2"], "got 1 and 2")):
        assert main([*base, *wrong]) == 2
        assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"visible_1_c1_" + b"9" * 5000,
        b"visible_" + b"9" * 30 + b"_c1_1",
        "visible_\u0661_c1_1".encode(),
        b"visible_1_c1_1\0",
        b"\0" * 1000,
        None,
        "pipe",
    ],
    ids=["bytes", "endless", "beyond 64 bits", "other digits", "NUL", "zeros", "a folder", "a pipe"],
)
def test_a_list_of_another_form_is_one_error(tmp_path, content):
    path = tmp_path / "list.txt"
    if content is None:
        path.mkdir()
    elif content == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"list\.txt") as raised:
        ImageList.read(path)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("pair", ["1", "a=b", "1=" + "9" * 5000, f"1={10**30}", f"{-(10**30)}=1", "1=1.5"])
def test_locations_that_are_none_are_refused(pair):
    with pytest.raises(InputError, match="--locations"):
        locations_of([pair])
