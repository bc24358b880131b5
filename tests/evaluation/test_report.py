"""The report: ranked lists by hand, a self-contained page, published rows marked, nothing written without results."""

import json
import re

import numpy as np
import pytest

from tacaf.evaluation.curves import POINTS, draw_curves
from tacaf.evaluation.features import FeatureSet
from tacaf.evaluation.protocols import score
from tacaf.evaluation.published import SYSU_QUERIES
from tacaf.evaluation.report import Match, RankedList, choose_ranked_lists, write_report
from tacaf.evaluation.trials import choose_setting, make_trials
from tacaf.vocabulary import InputError, Modality


def feature_set(pids: int = 6, seed: int = 0) -> FeatureSet:
    """Two images of every pid in every SYSU-MM01 camera; noisy copies of the pid's own direction."""
    dice = np.random.default_rng(seed)
    rows = [(pid, camid, number) for pid in range(1, pids + 1) for camid in range(1, 7) for number in (1, 2)]
    pid, camid, number = np.array(rows).T
    directions = dice.normal(size=(pids + 1, 16))
    codes = np.where(np.isin(camid, (3, 6)), Modality.INFRARED.code, Modality.VISIBLE.code).astype(np.uint8)
    features = (directions[pid] + dice.normal(size=(len(rows), 16))).astype(np.float32)
    return FeatureSet(features, pid, camid, codes, number)


def write_run(folder, steps: int = 30, note: str = "") -> None:
    (folder / "results").mkdir(parents=True)
    for mode in ("all_search", "indoor_search"):
        for shots in (1, 10):
            result = score(feature_set(), "sysu_mm01", mode=mode, shots=shots)
            (folder / "results" / f"{mode}-{shots}.json").write_text(json.dumps(result))
    records = [
        {
            "kind": "step", "epoch": 0, "step": i, "global_step": i + 1, "loss": 9 / (i + 1),
            "terms": {"identity": 1.0}, "lr": {"new": 0.1}, "images_per_s": 100.0, "data_wait_share": 0.1,
        }
        for i in range(steps)
    ]  # fmt: skip
    records.append(
        {"kind": "eval", "epoch": 1, "global_step": 30, "split": "test", "rank1": 0.5, "mAP": 0.4, "mINP": 0.3}
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "config.yaml").write_text(f"run: {note}\n")


def test_ranked_lists_are_the_nearest_eligible_gallery_images():
    features = feature_set()
    trial = make_trials(features, choose_setting("sysu_mm01", "all_search", None, 1), 1)[0]
    lists = choose_ranked_lists(trial, "cosine", n=5, shown=4, seed=0)
    assert len(lists) == len({one.query for one in lists}) == 5
    unit = features.features / np.linalg.norm(features.features, axis=1, keepdims=True)
    for one in lists:
        camera = features.camid[one.query]
        eligible = [g for g in trial.gallery_rows.tolist() if not (camera == 3 and features.camid[g] == 2)]
        wanted = sorted(eligible, key=lambda g: 1 - float(unit[one.query] @ unit[g]))[:4]
        assert [row for row, _ in one.matches] == wanted
        for row, distance in one.matches:
            assert distance == pytest.approx(1 - float(unit[one.query] @ unit[row]), abs=1e-5)


def test_the_choice_of_queries_depends_on_the_seed_alone():
    setting = choose_setting("sysu_mm01", "all_search", None, 1)
    queries = [
        [
            one.query
            for one in choose_ranked_lists(make_trials(feature_set(seed=s), setting, 1)[0], "cosine", 6, 3, seed)
        ]
        for s, seed in ((0, 0), (1, 0), (0, 1))
    ]
    assert queries[0] == queries[1], "other features, the same queries"
    assert queries[0] != queries[2]


def test_the_page_is_self_contained_and_says_what_is_whose(tmp_path):
    write_run(tmp_path / "run", note="<script>alert(1)</script>")
    right = Match(b"\xff\xd8right", 1, 0.125, True)
    wrong = Match(b"BMwrong", 2, 0.25, False)
    path = write_report(tmp_path / "run", [RankedList(b"\x89Pquery", 1, [right, wrong])])
    page = path.read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page), "nothing is loaded from elsewhere"
    assert "<script" not in page, "what comes from files is escaped"
    assert page.count("<svg") == 4
    assert "data:image/jpeg" in page
    assert "data:image/png" in page
    assert "data:image/bmp" in page
    assert page.count("✓</b> 1") == page.count("✗</b> 2") == 1
    assert "cannot be compared" in page
    assert "No run on SYSU-MM01, RegDB or LLCM exists" in page
    assert page.count('<span class="quiet">published</span>') == 9
    mean = json.loads((tmp_path / "run/results/all_search-1.json").read_text())["mean"]
    assert f"Rank-1 <b>{100 * mean['rank1']:.1f} %</b>" in page, "the headline is the single-shot all-search result"
    assert f"{100 * mean['rank1']:.1f}/{100 * mean['mAP']:.1f}" in page
    assert f"{SYSU_QUERIES:,}" in page


def test_real_size_results_are_not_called_incomparable(tmp_path):
    write_run(tmp_path / "run")
    for path in (tmp_path / "run" / "results").glob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "queries": SYSU_QUERIES}))
    assert "cannot be compared" not in write_report(tmp_path / "run").read_text()


def test_no_results_no_report(tmp_path):
    with pytest.raises(InputError, match="expected results in"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_long_runs_keep_the_page_small():
    records = [
        {
            "kind": "step",
            "global_step": i + 1,
            "loss": 1.0 + i % 7,
            "terms": {},
            "lr": {"new": 0.1},
            "images_per_s": 1.0,
        }
        | {"data_wait_share": 0.0}
        for i in range(50_000)
    ]
    loss = draw_curves(records)["Loss"]
    assert len(loss) < 60_000
    assert len(re.findall(r"L \d", loss)) <= 2 * POINTS + 100
