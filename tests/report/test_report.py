"""The report: a self-contained page for light and dark, published rows marked, nothing written without results."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from tacaf.datasets import SYSU_MM01_QUERIES
from tacaf.evaluation.config import EvaluationConfig
from tacaf.evaluation.score import score
from tacaf.report.curves import POINTS, draw_curves
from tacaf.report.overlay import MASK, match_lines, overlay, webp
from tacaf.report.report import PairPicture, Pictures, ShownImage, ShownList, write_report
from tacaf.run_files import StepRecord, read_metrics
from tacaf.vocabulary import InputError
from tests.evaluation.sets import feature_set

SETTINGS = EvaluationConfig()
AS_TRAINED = {"embedding": "full", "flip": False}


def write_run(folder, protocol: str = "sysu_mm01", steps: int = 30, note: str = "") -> None:
    """A run's folder with what a report reads. RegDB: visible to infrared alone."""
    (folder / "results").mkdir(parents=True)
    if protocol == "regdb":
        results = {
            "visible_to_infrared": score(
                feature_set(), protocol, direction="visible_to_infrared", circumstances=AS_TRAINED
            )
        }
    else:
        results = {
            f"{mode}-{shots}": score(feature_set(), protocol, mode=mode, shots=shots, circumstances=AS_TRAINED)
            for mode in ("all_search", "indoor_search")
            for shots in (1, 10)
        }
    for name, result in results.items():
        (folder / "results" / f"{name}.json").write_text(json.dumps(result.as_json()))
    records = [
        {
            "kind": "step",
            "epoch": 0,
            "step": i,
            "global_step": i + 1,
            "loss": 9 / (i + 1),
            "terms": {"identity": 1.0},
            "lr": {"new": 0.1},
            "images_per_s": 100.0,
            "data_wait_share": 0.1,
        }
        for i in range(steps)
    ]
    records.append(
        {"kind": "eval", "epoch": 1, "global_step": 30, "split": "test", "rank1": 0.5, "mAP": 0.4, "mINP": 0.3}
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "config.yaml").write_text(f"run: {note}\n")


def test_the_page_is_self_contained_and_says_what_is_whose(tmp_path):
    write_run(tmp_path / "run", note="<script>alert(1)</script>")
    right = ShownImage(b"\xff\xd8right", 1, 0.125, True)
    wrong = ShownImage(b"BMwrong", 2, 0.25, False)
    pictures = Pictures(
        {"chosen so": [ShownList(b"\x89Pquery", 1, 0.5, [right, wrong])]},
        {"A figure": "<svg></svg>"},
        [PairPicture(b"RIquery", b"RIq", 1, wrong, b"RIm", match_lines(np.eye(6), np.ones(6), 3))],
    )
    path = write_report(tmp_path / "run", SETTINGS, pictures)
    page = path.read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page), "nothing is loaded from elsewhere"
    assert "<script" not in page, "what comes from files is escaped"
    assert page.count("<svg") == 6
    assert page.count("<line ") == 3
    assert "data:image/webp" in page
    assert "data:image/jpeg" in page
    assert "data:image/png" in page
    assert "data:image/bmp" in page
    assert page.count("✓</b> 1") == page.count("✗</b> 2") == 1
    assert "AP 50 %" in page
    assert "cannot be compared" in page
    assert "No run on SYSU-MM01, RegDB or LLCM exists" in page
    assert page.count('<span class="quiet">published</span>') == 9
    mean = json.loads((tmp_path / "run/results/all_search-1.json").read_text())["mean"]
    assert f"Rank-1 <b>{100 * mean['rank1']:.1f} %</b>" in page, "the headline is the single-shot all-search result"
    assert f"{100 * mean['rank1']:.1f}/{100 * mean['mAP']:.1f}" in page
    assert f"{SYSU_MM01_QUERIES:,}" in page


def test_real_size_results_are_not_called_incomparable(tmp_path):
    write_run(tmp_path / "run")
    for path in (tmp_path / "run" / "results").glob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "queries": SYSU_MM01_QUERIES}))
    assert "cannot be compared" not in write_report(tmp_path / "run", SETTINGS).read_text()


@pytest.mark.parametrize(("queries", "comparable"), [(2_060, True), (24, False)])
def test_a_result_is_shown_in_the_column_of_its_own_data_set(tmp_path, queries, comparable):
    write_run(tmp_path, "regdb")
    path = tmp_path / "results" / "visible_to_infrared.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "queries": queries}))
    page = write_report(tmp_path, EvaluationConfig(protocol="regdb")).read_text()
    row = re.search('<tr class="ours">.*?</tr>', page).group()
    figure = f"{100 * result['mean']['rank1']:.1f}/{100 * result['mean']['mAP']:.1f}"
    empty = "not measured"
    assert re.findall("<td>(.*?)</td>", row) == ["this run", empty, empty, figure, empty, empty, empty]
    headings = re.findall(r'<th scope="col">([^<]*)</th>', page)
    assert headings[headings.index("method") + 3] == "RegDB visible→infrared"
    assert ("cannot be compared" in page) != comparable
    assert "56.5/59.8" in page, "LLCM's published figures have columns too"


@pytest.mark.slow
def test_what_was_scored_otherwise_afterwards_is_named_and_comes_second(tmp_path):
    """Whatever the names of the files are."""
    write_run(tmp_path)
    folder = tmp_path / "results"
    own = json.loads((folder / "all_search-1.json").read_text())
    for name, facts in (
        ("a", {"embedding": "global_only"}),
        ("b", {"rerank": {"k1": 20, "k2": 6, "lambda": 0.3}}),
    ):
        other = {**own, **facts, "mean": {**own["mean"], "rank1": 0.0123, "mAP": 0.0321}}
        (folder / f"{name}.json").write_text(json.dumps(other))
    page = write_report(tmp_path, SETTINGS).read_text()
    headline = f"Rank-1 <b>{100 * own['mean']['rank1']:.1f} %</b>"
    assert headline in page
    assert page.count("<td>sysu_mm01, all_search</td>") == 2  # 1 and 10 shots
    assert page.count("<td>sysu_mm01, all_search, global_only</td>") == page.count("all_search, re-ranked</td>") == 1
    assert "1.2/3.2" not in page


def test_no_results_no_report(tmp_path):
    with pytest.raises(InputError, match="results"):
        write_report(tmp_path, SETTINGS)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_long_runs_keep_the_page_small():
    records = [
        StepRecord(
            kind="step",
            epoch=0,
            step=i,
            global_step=i + 1,
            loss=1.0 + i % 7,
            terms={},
            lr={"new": 0.1},
            images_per_s=1.0,
            data_wait_share=0.0,
        )
        for i in range(50_000)
    ]
    loss = draw_curves(iter(records))["Loss"]
    assert len(loss) < 60_000
    assert len(re.findall(r"L \d", loss)) <= 2 * POINTS + 100


@pytest.mark.slow
def test_figures_take_the_colours_of_the_page(tmp_path):
    write_run(tmp_path / "run")
    page = write_report(tmp_path / "run", SETTINGS).read_text()
    assert "prefers-color-scheme: dark" in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.S):
        assert "fill: currentColor" in svg, "text"
        assert "stroke: var(--line)" in svg, "grid"
        assert not re.search(r"(fill|stroke): (#000000|#ffffff|black|white)", svg)


@pytest.mark.slow
def test_a_term_that_comes_later_has_no_line_before(tmp_path):
    write_run(tmp_path)
    records = list(read_metrics(tmp_path / "metrics.jsonl"))
    records[20] = records[20].model_copy(update={"terms": {"identity": None, "late": 2.0}})
    assert ">late</text>" in draw_curves(records)["Loss"]


@pytest.mark.slow
def test_every_trial_has_its_row(tmp_path):
    write_run(tmp_path)
    page = write_report(tmp_path, SETTINGS).read_text()
    trials = json.loads((tmp_path / "results/indoor_search-1.json").read_text())["trials"]
    assert len(trials) == 10
    for number, trial in enumerate(trials, 1):
        assert f"<tr><td>{number}</td><td>{100 * trial['rank1']:.2f}</td>" in page


def test_an_overlay_colours_where_values_are_high_and_nowhere_else():
    grey = np.full((60, 20, 3), 100, np.uint8)
    mixed = overlay(grey, np.array([0.0, 0, 0, 0, 0, 1]), 6, MASK).astype(int)
    assert (mixed[:40] == 100).all()
    expected = [round(0.25 * 100 + 0.75 * value) for value in MASK]
    assert mixed[-1, 0].tolist() == expected
    read = Image.open(io.BytesIO(webp(mixed.astype(np.uint8))))
    assert read.size == (20, 60)


def test_lines_start_on_the_person_and_end_where_the_matching_is_largest():
    comask_L = np.array([0.1, 0.9, 0.8, 0.2])  # 2 x 2: right above, left below
    matching_LL = np.full((4, 4), 0.1)
    matching_LL[1, 2] = 0.7
    matching_LL[2, 3] = 0.4
    first, second = match_lines(matching_LL, comask_L, height=2)
    assert first[:5] == (0.75, 0.25, 0.25, 0.75, 0.7)
    assert second[:5] == (0.25, 0.75, 0.75, 0.75, 0.4)
    assert first.colour != second.colour
