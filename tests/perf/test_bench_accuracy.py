"""Accuracy against time: the trainings run, one really without the kernels, and the figures are of their logs."""

import argparse
import json
from pathlib import Path

import pytest

from perf import bench_accuracy
from tacaf.vocabulary import InputError
from tests.train.finished import DEMO, TINY

pytestmark = pytest.mark.slow  # trains
SETTINGS = ["train.epochs=2", "train.steps_per_epoch=2", "evaluation.every=1", "evaluation.modes=[all_search]"]


def command(shards: Path, out: Path, *more: str) -> list[str]:
    words = ["--shards", str(shards), "--out", str(out), "--config", str(DEMO), "--json", str(out / "found.json")]
    return [*words, *(word for setting in (*TINY, *SETTINGS, *more) for word in ("--set", setting))]


@pytest.fixture(scope="module")
def found(sysu_shards, tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("accuracy")
    assert bench_accuracy.main(command(sysu_shards, out)) == 0
    assert "<svg" in (out / "found.svg").read_text()
    return {"out": out, **json.loads((out / "found.json").read_text())}


def test_both_ways_train_alike_and_are_timed(found):
    first = {}
    for name, way in found["ways"].items():
        lines = [json.loads(line) for line in (found["out"] / name / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if line["kind"] == "step"]
        first[name] = steps[0]["loss"]
        assert [point["step"] for point in way["points"]] == [2, 4]
        assert way["training_s"] == pytest.approx(sum(line["step_ms"] for line in steps) / 1000, abs=0.1)
        assert way["points"][0]["training_s"] < way["points"][1]["training_s"] == way["training_s"]
        assert way["results"][0]["mean"]["mAP"] == pytest.approx(way["points"][-1]["mAP"])
    assert first["kernels"] == pytest.approx(first["definitions"], rel=1e-4)
    assert list(found["seconds_to_mAP_goal"]) == ["definitions", "kernels"]
    assert str(found["out"]) not in json.dumps({**found, "out": ""})


def test_the_second_time_nothing_is_trained_and_other_settings_are_refused(found, sysu_shards, capsys, monkeypatch):
    monkeypatch.setattr(bench_accuracy, "run_all", lambda wanted, *_: not wanted)
    assert bench_accuracy.main(command(sysu_shards, found["out"])) == 0
    assert bench_accuracy.main(command(sysu_shards, found["out"], "loss.dt=1")) == 2
    assert "loss.dt = 2.0" in capsys.readouterr().err


def test_what_is_finished_is_kept_when_the_other_training_fails(found, sysu_shards, monkeypatch, capsys):
    def fails(wanted, ended):
        for one in (*wanted, trainings["kernels"]):
            ended(one, one.folder.name != "kernels")
        return True

    words = command(sysu_shards, found["out"])
    words[words.index("--json") + 1] = str(found["out"] / "partial.json")
    monkeypatch.setattr(bench_accuracy.Training, "finished", lambda self: self.folder.name == "kernels")
    monkeypatch.setattr(bench_accuracy, "run_all", fails)
    trainings = {"kernels": bench_accuracy.Training(found["out"] / "kernels", DEMO, ())}
    assert bench_accuracy.main(words) == 1
    assert "definitions" in capsys.readouterr().err
    partial = json.loads((found["out"] / "partial.json").read_text())
    assert not partial["complete"]
    assert partial["ways"] == {"kernels": found["ways"]["kernels"]}


def test_the_ways_differ_in_their_kernels_alone(sysu_shards, tmp_path):
    args = argparse.Namespace(shards=str(sysu_shards), out=tmp_path, config=DEMO, set=[], ways=[*bench_accuracy.WAYS])
    configs = {way: one.config() for way, one in bench_accuracy.trainings(args).items()}
    kernels = {way: (config.model.kernels, config.model.fused_norm) for way, config in configs.items()}
    assert kernels == {"definitions": ("reference", False), "kernels": ("auto", False), "graph": ("auto", True)}
    assert [config.train.cuda_graph for config in configs.values()] == [False, False, True]
    aside = {"run": True, "model": {"kernels", "fused_norm"}, "train": {"cuda_graph"}, "deepspeed": True}
    plain, fast, graph = (config.model_dump(exclude=aside) for config in configs.values())
    assert plain == fast == graph


def test_a_graph_needs_a_gpu(sysu_shards, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_accuracy.torch.cuda, "is_available", lambda: False)
    assert bench_accuracy.main([*command(sysu_shards, tmp_path), "--ways", "graph"]) == 2
    assert "needs a GPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_ratio_is_of_times_and_the_goal_of_the_worse_score():
    def way(step_ms: float, *points: tuple[float, float]) -> dict:
        made = [{"training_s": seconds, "rank1": score, "mAP": score, "mINP": score} for seconds, score in points]
        return {"points": made, "step_ms_p50": step_ms, "training_s": made[-1]["training_s"]}

    ways = {"definitions": way(20, (10, 0.2), (20, 0.4)), "kernels": way(10, (5, 0.38), (10, 0.5))}
    found = bench_accuracy.compare(ways)
    assert (found["step_ms_ratio"], found["training_s_ratio"]) == (2, 2)
    assert found["mAP_goal"] == pytest.approx(0.36)
    assert found["seconds_to_mAP_goal"] == {"definitions": 20, "kernels": 5}
    assert found["final_difference"]["mAP"] == pytest.approx(0.1)


def test_scores_of_other_identities_make_no_curve(sysu_shards, tmp_path, capsys):
    for setting in ("data.split=train", "train.choose=validation"):
        assert bench_accuracy.main(command(sysu_shards, tmp_path, "data.split=train", setting)) == 2
        assert f"train.choose {setting.partition('=')[2] if 'choose' in setting else 'last'}" in capsys.readouterr().err


def test_a_log_that_lacks_a_step_is_refused(tmp_path):
    figures = {"loss": 1.0, "terms": {}, "lr": {}, "images_per_s": 1.0, "data_wait_share": 0.0, "step_ms": 1}
    scores = {"split": "test", "rank1": 0.5, "mAP": 0.5, "mINP": 0.5}
    lines = [
        {"kind": "step", "epoch": 0, "step": 1, "global_step": 2, **figures},
        {"kind": "eval", "epoch": 0, "global_step": 2, **scores},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=r"metrics\.jsonl.* 1 steps"):
        bench_accuracy.curve(tmp_path)
