"""The whole road at the size of a thimble: train, stop, resume, two ranks, score again, as a user types it."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from shards.pedestrians.synth import synthesise
from shards.sources import regdb
from tacaf import checkpoint
from tacaf.command import EXIT_STOPPED
from tacaf.files import sha256_of
from tacaf.train.config import load_config
from tacaf.train.new_model import build_model
from tacaf.train.regroup import PLACES, _named_as_adam, data_only
from tests.evaluation.sets import permutations_file
from tests.forked import forkable, run_forked, run_ranks
from tests.processes import LIMIT_S, fresh_port, wait_until
from tests.tolerances import ADAMW_SHARE, assert_same_losses, assert_same_training

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
STEPS = 3  # of an epoch; two epochs
TINY = [
    "model.backbone={width: 8, blocks: [1, 1, 1, 1]}",
    "model.ipcam={node_width: 16, attention_width: 8, pair_width: 8}",
    "model.cmaam.consistency=true",  # all there is
    "loss.ic=0.3",
    "data.plan={identities_per_batch: 4, images_per_identity: 2}",
    "data.threads=1",
    "train.epochs=2",
    f"train.steps_per_epoch={STEPS}",
    "train.save_every_steps=2",
    "train.keep=9",
    "train.precision=fp32",
    "evaluation.every=1",
    "evaluation.batch_size=16",
    "evaluation.ranked_lists=2",
]


def start(*command: object, ranks: int = 1) -> subprocess.Popen:
    """A command of the project in a process of its own, on one thread, so that sums are the same every time."""
    launcher = [BIN / "deepspeed", "--num_accelerators", ranks] if ranks > 1 else [sys.executable]
    if ranks > 1:
        launcher += ["--master_port", fresh_port()]
    words = [str(part) for part in (*launcher, *command)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(words, cwd=ROOT, env=environment(), text=True, **pipes)


def run(*command: object, ranks: int = 1, check: bool = True, fork: bool = True) -> subprocess.CompletedProcess:
    """A command of the project to its end, with `fork` without its imports and without a launcher (tests/forked.py)."""
    words = [str(part) for part in command]
    if fork and forkable(words):
        done = run_ranks(words, ranks, environment()) if ranks > 1 else run_forked(words, environment())
    else:
        with start(*words, ranks=ranks) as process:
            out, err = process.communicate(timeout=LIMIT_S)
        done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def environment() -> dict[str, str]:
    found = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}
    return {name: value for name, value in found.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}


def command_of(shards: Path, folder: Path, *more: str) -> list[str]:
    """The words of a tiny training; `more` are values (a=b) and flags."""
    values = [f"data.shards={shards}", f"run={folder}", *TINY, *(value for value in more if "=" in value)]
    flags = [value for value in more if "=" not in value]
    settings = [part for value in values for part in ("--set", value)]
    return ["launch/train.py", "--config", "launch/configs/demo.yaml", *settings, *flags]


def train(shards: Path, folder: Path, *more: str, ranks: int = 1, check: bool = True) -> subprocess.CompletedProcess:
    return run(*command_of(shards, folder, *more), ranks=ranks, check=check)


def records_of(folder: Path, kind: str) -> list[dict]:
    path = folder / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [record for record in records if record["kind"] == kind]


def steps_of(folder: Path) -> list[dict]:
    return records_of(folder, "step")


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """The model file's, by name."""
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def finished(sysu_shards, tmp_path_factory) -> Path:
    """A run that was never interrupted, by a Python of its own, whose strings have other hashes than those it forks."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    done = run(*command_of(sysu_shards, folder), fork=False)
    assert "rank-1" in done.stdout
    assert str(folder / "report.html") in done.stdout
    return folder


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
        assert 0 < result["chance_rank1"] < 1
    assert [record["global_step"] for record in steps_of(finished)] == list(range(1, 2 * STEPS + 1))
    assert not list((finished / "checkpoints").glob(".tmp-*"))
    lines = (finished / "run.log").read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} rank 0 INFO .*identities.*", lines[0])
    assert any("rank-1" in line for line in lines)


def test_resuming_in_mid_epoch_is_the_uninterrupted_run_bit_for_bit(sysu_shards, finished, tmp_path):
    folder = tmp_path / "resumed"
    shutil.copytree(finished, folder)
    for path in (folder / "checkpoints").glob("step-*"):
        if path.name != "step-00000002":  # two of three steps of the first epoch
            shutil.rmtree(path)
    for name in ("model.safetensors", "report.html"):
        (folder / name).unlink()
    shutil.rmtree(folder / "results")
    train(sysu_shards, folder, "--resume")
    same_run(finished, folder)


def same_run(expected: Path, found: Path) -> None:
    """The same weights bit for bit, and every step once with the same losses."""
    weights = [tensors_of(folder) for folder in (expected, found)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name
    losses = [
        [(record["global_step"], record["loss"], record["terms"]) for record in steps_of(folder)]
        for folder in (expected, found)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("steps", "number"),
    [(0, signal.SIGTERM), (1, signal.SIGUSR1), (STEPS, signal.SIGTERM)],
    ids=["at the first step", "between steps", "in the evaluation"],
)
def test_asked_to_stop_it_saves_and_goes_on_as_if_nothing_had_been(sysu_shards, finished, tmp_path, steps, number):
    folder = tmp_path / "stopped"
    with start(*command_of(sysu_shards, folder)) as process:
        assert any("steps an epoch" in line for line in iter(process.stdout.readline, "")), process.communicate()
        wait_until(lambda: len(steps_of(folder)) >= steps, process, every_s=0.005)
        process.send_signal(number)
        out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == EXIT_STOPPED, out[-2000:] + err[-2000:]
    assert "--resume" in out
    assert "Traceback" not in err
    assert not (folder / "model.safetensors").exists()
    assert steps <= len(steps_of(folder)) < 2 * STEPS
    train(sysu_shards, folder, "--resume")
    same_run(finished, folder)
    scores = [records_of(run, "eval") for run in (finished, folder)]
    assert scores[0] == scores[1], "every evaluation once, with the same scores"


def test_one_rank_asked_to_stop_stops_all(sysu_shards, tmp_path):
    folder = tmp_path / "stopped"
    with start(*command_of(sysu_shards, folder, "train.epochs=200"), ranks=2) as process:
        wait_until(lambda: steps_of(folder), process)
        ranks = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if "launch/train.py" in child.cmdline() and child.environ().get("RANK") == "1"
        ]
        ranks[-1].send_signal(signal.SIGUSR1)
        out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == EXIT_STOPPED, out[-2000:] + err[-2000:]
    last = steps_of(folder)[-1]["global_step"]
    assert f"saved after step {last}" in out
    assert (folder / "checkpoints" / f"step-{last:08d}" / "manifest.json").is_file()


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


def refused(done: subprocess.CompletedProcess, says: str) -> None:
    """Exit code 2, one line of error, no traceback."""
    assert done.returncode == 2, done.stdout[-2000:] + done.stderr[-2000:]
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1


def test_a_run_folder_is_never_overwritten(sysu_shards, finished):
    before = (finished / "metrics.jsonl").read_bytes()
    refused(train(sysu_shards, finished, check=False), "already has a run in it; add --resume")
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_a_checkpoint_of_another_model_is_refused(sysu_shards, finished):
    done = train(sysu_shards, finished, "model.backbone={width: 16, blocks: [1, 1, 1, 1]}", "--resume", check=False)
    refused(done, "model.backbone.width: the checkpoint has 8, this run 16")


def test_a_refused_resume_leaves_the_config_as_it_was(sysu_shards, finished):
    before = (finished / "config.yaml").read_text()
    done = train(sysu_shards, finished, "optim.new_rate=0.5", "--resume", check=False)
    refused(done, "optim.new_rate: the checkpoint has")
    assert (finished / "config.yaml").read_text() == before


def test_two_ranks_go_on_where_one_stopped(sysu_shards, finished, tmp_path):
    """From a checkpoint of one process: the same losses."""
    folder = tmp_path / "regrouped"
    shutil.copytree(finished, folder)
    for path in (folder / "checkpoints").glob("step-*"):
        if path.name != "step-00000002":
            shutil.rmtree(path)
    train(sysu_shards, folder, "--resume", ranks=2)
    one, two = steps_of(finished), steps_of(folder)
    assert [step["global_step"] for step in two] == list(range(1, 2 * STEPS + 1))
    assert_same_losses(one[2:4], two[2:4], updated=True)
    assert [step["lr"] for step in two] == [step["lr"] for step in one]
    assert json.loads((folder / "checkpoints" / "step-00000006" / "manifest.json").read_text())["facts"]["ranks"] == 2
    assert not list((folder / "checkpoints").glob(".tmp-*"))


def test_a_damaged_checkpoint_is_passed_over(sysu_shards, finished, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(finished, folder)
    newest = max((folder / "checkpoints").glob("step-*"))
    victim = next(newest.glob("*model_states.pt"))
    victim.write_bytes(victim.read_bytes()[:-100])
    done = train(sysu_shards, folder, "--resume")
    assert f"checkpoint {newest} is damaged" in done.stderr
    name = "head.classifier.0.weight"
    assert torch.equal(tensors_of(finished)[name], tensors_of(folder)[name])


def test_a_finished_run_goes_on_with_more_epochs(sysu_shards, tmp_path):
    """Under milestones it is the longer run bit for bit."""
    milestones = ("optim.schedule=milestones", "optim.warmup_epochs=1")
    longer, extended = tmp_path / "longer", tmp_path / "extended"
    train(sysu_shards, longer, *milestones, "train.epochs=3")
    train(sysu_shards, extended, *milestones)
    done = train(sysu_shards, extended, *milestones, "train.epochs=3", "--resume")
    assert "train.epochs is 3 instead of 2" in done.stdout
    assert "milestones" in done.stdout
    assert len(steps_of(extended)) == 3 * STEPS
    same_run(longer, extended)
    done = train(sysu_shards, extended, *milestones, "--resume", check=False)
    refused(done, "train.epochs: the checkpoint has 3, this run 2")


def test_a_run_from_elsewhere_asks_for_trust(sysu_shards, finished, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "ranks")  # which every start writes
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another home"))
    refused(train(sysu_shards, folder, "--resume", check=False), "add --trust")
    assert {path: path.read_bytes() for path in before} == before
    train(sysu_shards, folder, "--resume", "--trust")
    same_run(finished, folder)


class Harm:
    """Unpickled it makes a folder, as it could do anything."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_no_code_in_a_checkpoint_is_run_even_if_it_is_trusted(sysu_shards, finished, tmp_path):
    folder, victim = tmp_path / "copy", tmp_path / "victim"
    shutil.copytree(finished, folder)
    newest = checkpoint.steps_in(folder / "checkpoints")[-1]
    file = next(newest.glob("*optim_states.pt"))
    torch.save({"optimizer_state_dict": Harm(victim)}, file)
    made = checkpoint.manifest_of(newest)
    own = checkpoint.SavedFile(bytes=file.stat().st_size, sha256=sha256_of(file))
    forged = made.model_copy(update={"files": {**made.files, file.name: own}, "signature": None})
    (newest / "manifest.json").write_text(forged.to_json())
    done = train(sysu_shards, folder, "--resume", "--trust", check=False)
    refused(done, "which is code")
    assert not victim.exists()


def test_regrouping_reads_what_is_listed_and_runs_no_code(tmp_path):
    temporary, victim = tmp_path / checkpoint.temporary_tag(1), tmp_path / "victim"
    temporary.mkdir()
    torch.save({"module": {}}, temporary / "mp_rank_00_model_states.pt")
    listed = checkpoint.commit(tmp_path, 1, {}, keep=1)
    torch.save(Harm(victim), listed / "not_listed_optim_states.pt")
    (tmp_path / "parts").mkdir()
    assert not _named_as_adam(listed, tmp_path / "parts", PLACES[0])
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["mp_rank_00_model_states.pt"]
    temporary.mkdir()
    torch.save(Harm(victim), temporary / "zero_optim_states.pt")
    with pytest.raises(pickle.UnpicklingError, match="mkdir"), data_only():
        _named_as_adam(checkpoint.commit(tmp_path, 1, {}, keep=1), tmp_path / "parts", PLACES[0])
    assert not victim.exists()


def test_nothing_to_resume(sysu_shards, tmp_path):
    refused(train(sysu_shards, tmp_path / "new", "--resume", check=False), "leave --resume out")


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
