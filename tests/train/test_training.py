"""Small trainings as a user types them: what a run leaves, two ranks, other data sets, and what is refused."""

import json
import re

import numpy as np
import pytest

from shards.pedestrians.synth import synthesise
from shards.sources import regdb
from tacaf.train.config import load_config
from tacaf.train.new_model import build_model
from tests.evaluation.sets import permutations_file
from tests.tolerances import ADAMW_SHARE, assert_same_losses, assert_same_training
from tests.train.tiny_runs import (
    STEPS,
    command_of,
    records_of,
    refused,
    run,
    steps_of,
    tensors_of,
    train,
)


def test_a_run_folder_is_complete(finished):
    for name in (
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "model.safetensors",
        "run.log",
        "report.html",
        "checkpoints/latest",
    ):
        assert (finished / name).is_file(), name
    results = [json.loads(path.read_text()) for path in (finished / "results").glob("*.json")]
    assert {(result["mode"], result["shots"]) for result in results} == {("all_search", 1), ("indoor_search", 1)}
    for result in results:
        assert len(result["trials"]) == 10
        assert result["trained_on"]["split"] == "trainval"
        assert result["embedding_width"] == 256 + 9 * 16  # without the global node
        assert result["part_weight"] == 0.5
        assert 0 < result["chance_rank1"] < 1
    assert [record["global_step"] for record in steps_of(finished)] == list(range(1, 2 * STEPS + 1))
    assert not list((finished / "checkpoints").glob(".tmp-*"))
    lines = (finished / "run.log").read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} rank 0 INFO .*identities.*", lines[0])
    assert any("rank-1" in line for line in lines)


def test_two_ranks_train_as_one(sysu_shards, finished, tmp_path):
    folder = tmp_path / "two"
    run(*command_of(sysu_shards, folder), ranks=2, fork=False)
    one, two = steps_of(finished), steps_of(folder)
    assert len(two) == 2 * STEPS
    assert_same_losses(one[:STEPS], two[:STEPS])
    whole, halves = tensors_of(finished), tensors_of(folder)
    model, _ = build_model(load_config(finished / "config.yaml", []), len(whole["head.classifier.0.weight"]))
    first = {name: parameter.detach() for name, parameter in model.named_parameters()}
    assert_same_training(first, whole, halves, ADAMW_SHARE)


@pytest.mark.parametrize("threshold", [0, 500, 100_000])
def test_zero_3_trains_as_stage_1_after_an_evaluation(sysu_shards, finished, tmp_path, threshold):
    """ZeRO-3 partitions parameters of more elements than the threshold: all, some and none of this model's."""
    zero = f"{{stage: 3, stage3_param_persistence_threshold: {threshold}}}"
    train(sysu_shards, tmp_path / "run", f"deepspeed={{zero_optimization: {zero}}}")
    stage_1, stage_3 = steps_of(finished), steps_of(tmp_path / "run")
    assert len(stage_3) == 2 * STEPS
    assert_same_losses(stage_1[: STEPS + 1], stage_3[: STEPS + 1])


def test_the_best_on_validation_identities_is_kept_and_monitors_are_told(sysu_shards, tmp_path):
    folder = tmp_path / "best"
    values = ["data.split=train", "train.choose=validation", "train.best_by=rank1", "train.watch=[csv_monitor]"]
    plan = "data.plan={identities_per_batch: 4, images_per_identity: 2}"
    train(sysu_shards, folder, *values, plan, "train.epochs=3", "train.keep=1", "train.save_every_steps=1")
    scores = {record["epoch"]: record["rank1"] for record in records_of(folder, "eval") if record["split"] == "val"}
    best = min(scores, key=lambda epoch: (-scores[epoch], epoch))
    checkpoints = folder / "checkpoints"
    assert (checkpoints / "best").read_text().strip() == f"step-{best * STEPS:08d}"
    kept = {path.name for path in checkpoints.glob("step-*")}
    assert kept == {f"step-{best * STEPS:08d}", f"step-{3 * STEPS:08d}"}
    rows = (folder / "watch" / "start-0" / "csv_monitor" / "tacaf_gradient_norm.csv").read_text().split()
    assert [float(row.split(",")[1]) for row in rows[1:]] == pytest.approx(
        [step["gradient_norm"] for step in steps_of(folder)], rel=1e-5
    )


def test_validation_identities_are_scored_and_shown_without_the_permutations_of_the_test_identities(
    sysu_shards, tmp_path
):
    permutations_file(tmp_path / "rand_perm_cam.mat", [np.empty((0, 0))])
    values = ["data.split=train", "evaluation.split=val", f"evaluation.splits={tmp_path}", "train.epochs=1"]
    plan = "data.plan={identities_per_batch: 4, images_per_identity: 2}"
    train(sysu_shards, tmp_path / "run", *values, plan)
    assert (tmp_path / "run" / "report.html").is_file()
    for path in (tmp_path / "run" / "results").glob("*.json"):
        result = json.loads(path.read_text())
        assert (result["split"], result["gallery_draw"]) == ("val", "literature")


def test_scoring_again_gives_the_same_figures(sysu_shards, finished, tmp_path):
    out, features = tmp_path / "score.json", tmp_path / "features.npz"
    mode = ("--protocol", "sysu_mm01", "--mode", "all_search", "--shots", 1)
    run("launch/evaluate.py", "--run", finished, "--shards", sysu_shards, *mode, "--json", out, "--features", features)
    first = json.loads((finished / "results" / "sysu_mm01-all_search-1shot-literature.json").read_text())
    again = json.loads(out.read_text())
    assert again["mean"] == pytest.approx(first["mean"], abs=1e-6)
    run("-m", "tacaf.evaluation", "score", "--features", features, *mode, "--json", tmp_path / "plain.json")
    assert json.loads((tmp_path / "plain.json").read_text())["mean"] == pytest.approx(first["mean"], abs=1e-6)


def test_another_data_set_in_bf16(tmp_path):
    """RegDB's layout: a numbered split with its own test identities, both directions, no other split."""
    synthesise(tmp_path / "raw", layout="regdb", identities=12, seed=0, height=96, workers=1)
    shards, folder = regdb.pack(tmp_path / "raw", tmp_path / "shards").folder, tmp_path / "run"
    values = ("data.split=train_2", "evaluation.protocol=regdb", "train.precision=bf16", "train.epochs=1")
    train(shards, folder, *values)
    assert all(np.isfinite(record["loss"]) for record in steps_of(folder))
    results = [json.loads(path.read_text()) for path in (folder / "results").glob("*.json")]
    assert {result["direction"] for result in results} == {"visible_to_infrared", "infrared_to_visible"}
    assert {(result["split"], result["trained_on"]["split"]) for result in results} == {("test_2", "train_2")}
    other = ("--run", folder, "--shards", shards, "--protocol", "regdb", "--split", "test_1")
    refused(run("launch/evaluate.py", *other, check=False), "expected identities that the model has not seen")


def test_a_run_folder_is_never_overwritten(sysu_shards, finished):
    before = (finished / "metrics.jsonl").read_bytes()
    refused(train(sysu_shards, finished, check=False), "already has a run in it; add --resume")
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_a_missing_shard_set(tmp_path):
    refused(train(tmp_path / "absent", tmp_path / "run", check=False), "shard set in")
    assert not (tmp_path / "run").exists()


def test_too_few_identities(sysu_shards, tmp_path):
    done = train(
        sysu_shards, tmp_path / "run", "data.plan={identities_per_batch: 64, images_per_identity: 2}", check=False
    )
    refused(done, "identities_per_batch = 64")


def test_a_protocol_of_another_data_set_is_refused_before_the_training(tmp_path, sysu_shards):
    done = train(sysu_shards, tmp_path / "run", "evaluation.protocol=regdb", "data.split=train_1", check=False)
    refused(done, "expected a split among")
    assert not (tmp_path / "run").exists()


def test_dry_run_says_what_it_would_cost_and_writes_nothing(sysu_shards, tmp_path):
    done = train(sysu_shards, tmp_path / "run", "--dry-run")
    for word in (
        "identities_per_batch: 4",
        "training set",
        "6 in all",
        "parameters",
        "TFLOP a step",
        "memory a rank",
        "disk",
    ):
        assert word in done.stdout
    assert not (tmp_path / "run").exists()
