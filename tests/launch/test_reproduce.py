"""reproduce.py: a table from raw folders in every layout, interrupted and resumed, never complete before it is."""

import json
import signal
import sys

import pytest

from launch import reproduce
from launch.study.trainings import Training
from shards.pedestrians.synth import synthesise
from tacaf.command import EXIT_STOPPED
from tests.processes import LIMIT_S, wait_until
from tests.train.tiny_runs import TINY, refused, run, start, steps_of

SETTINGS = [part for value in (*TINY, "train.epochs=1", "evaluation.every=0") for part in ("--set", value)]


def words(layout: str, root, out, *more: object) -> list[object]:
    config = ["--config", "launch/configs/demo.yaml"]
    return ["launch/reproduce.py", layout, "--root", root, "--out", out, *config, *SETTINGS, *more]


def table_of(out) -> dict:
    return json.loads((out / "table.json").read_text())


def raw_of(layout: str, folder):
    synthesise(folder / "raw", layout=layout, identities=12, seed=0, images_per_camera=3, height=96, workers=1)
    return folder / "raw"


def test_sysu_mm01_interrupted_and_resumed(raw_sysu, tmp_path):
    out = tmp_path / "out"
    command = words("sysu_mm01", raw_sysu, out, "--rows", "aug", "full", "--set", "train.epochs=10")
    with start(*command) as process:
        wait_until(lambda: steps_of(out / "runs" / "aug-seed0"), process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=LIMIT_S)
    assert process.returncode == EXIT_STOPPED
    assert not (out / "table.json").exists() or not table_of(out)["complete"]
    # another recipe does not go on with that run: one table, one recipe
    refused(run(*command, "--set", "loss.margin=2", check=False), "expected loss.margin = 0.3")
    done = run(*command)
    table = table_of(out)
    assert table["complete"]
    assert [row["row"] for row in table["rows"]] == ["aug", "full"]
    for row in table["rows"]:
        assert [len(results) for results in row["results_of_seeds"]] == [2]  # all_search and indoor_search, one shot
    own = json.loads((out / "runs/full-seed0/results/sysu_mm01-all_search-1shot-literature.json").read_text())
    assert table["rows"][1]["results_of_seeds"][0][0]["mean"] == own["mean"]
    text = (out / "table.md").read_text()
    assert f"{100 * own['mean']['rank1']:.2f} ± {100 * own['std']['rank1']:.2f} /" in text
    assert "75.98/70.55" in text
    assert f"This is not sysu_mm01: it has {table['identities']} training identities instead of 395 or 296." in text
    assert text in done.stdout
    # nothing is trained twice, and what somebody scored with other options is not the training's
    other = {**own, "embedding": "full", "mean": dict.fromkeys(own["mean"], 0.0)}
    (out / "runs/full-seed0/results/sysu_mm01-all_search-1shot-literature-full.json").write_text(json.dumps(other))
    made = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("model.safetensors")}
    run(*command)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert table_of(out)["rows"] == table["rows"]


def test_regdb_scores_its_splits_together(tmp_path):
    """As they were scored one by one: with re-ranking here."""
    command = words("regdb", raw_of("regdb", tmp_path), tmp_path / "out", "--rows", "baseline", "--regdb-splits", 2, 5)
    run(*command, "--set", "evaluation.rerank=[5, 3, 0.3]")
    results = table_of(tmp_path / "out")["rows"][0]["results_of_seeds"][0]
    assert {result["direction"] for result in results} == {"visible_to_infrared", "infrared_to_visible"}
    for result in results:
        assert len(result["trials"]) == 2
        singles = []
        for split in (2, 5):
            name = f"baseline-split{split}-seed0/results/regdb-{result['direction']}-rerank.json"
            singles.append(json.loads((tmp_path / "out" / "runs" / name).read_text())["mean"]["rank1"])
        assert [trial["rank1"] for trial in result["trials"]] == pytest.approx(singles)
        assert result["rerank"] == {"k1": 5, "k2": 3, "lambda": 0.3}


@pytest.mark.slow
def test_a_row_that_failed_is_named_and_the_others_stand(tmp_path, monkeypatch, capsys):
    sound = Training.command

    def command(one, ranks):
        return [sys.executable, "-c", "raise SystemExit(70)"] if one.folder.name == "full-seed0" else sound(one, ranks)

    monkeypatch.setattr(Training, "command", command)
    wanted = words("llcm", raw_of("llcm", tmp_path), tmp_path / "out", "--rows", "baseline", "full")
    assert reproduce.main([str(word) for word in wanted[1:]]) == 1, capsys.readouterr().err
    table = table_of(tmp_path / "out")
    assert not table["complete"]
    baseline, full = table["rows"]
    assert not baseline["lacks"]
    assert full["lacks"] == ["full-seed0: its training ended with status 70"]
    text = (tmp_path / "out" / "table.md").read_text()
    assert "full-seed0: its training ended with status 70" in text
    assert "not measured" in text


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--rows", "best"], "invalid choice: 'best'"),
        (["--ranks", "0"], "expected at least 1 rank, got 0"),
        (["--set", "data.plan.nonsense=1"], "no such key"),
    ],
)
def test_wrong_words_are_refused(raw_sysu, tmp_path, capsys, more, says):
    assert reproduce.main([str(word) for word in words("sysu_mm01", raw_sysu, tmp_path, *more)][1:]) == 2
    assert says in capsys.readouterr().err


def test_a_wrong_root(tmp_path, capsys):
    assert reproduce.main(["llcm", "--root", str(tmp_path / "no"), "--out", str(tmp_path / "out")]) == 2
    assert "expected" in capsys.readouterr().err
