"""Trainings that are interrupted, damaged or extended, and then resumed."""

import json
import os
import pickle
import shutil
import signal
from pathlib import Path

import psutil
import pytest
import torch

from tacaf import checkpoint
from tacaf.command import EXIT_STOPPED
from tacaf.files import sha256_of
from tacaf.train.regroup import PLACES, _named_as_adam, data_only
from tests.processes import LIMIT_S, wait_until
from tests.tolerances import assert_same_losses
from tests.train.tiny_runs import (
    STEPS,
    command_of,
    records_of,
    refused,
    same_run,
    start,
    steps_of,
    tensors_of,
    train,
)


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


class ByName:
    """Saved as Python 3.11 saves a member of an enumeration, in this and in every other version."""

    def __init__(self, *parts: object) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple:
        return getattr, self.parts


def test_the_stages_of_zero_are_read_by_name_and_nothing_else_is(tmp_path):
    from deepspeed.runtime.fp16.loss_scaler import LossScaler  # here, because it takes seconds
    from deepspeed.runtime.zero.config import ZeroStageEnum

    file = tmp_path / "saved.pt"
    torch.save({"zero_stage": ByName(ZeroStageEnum, "optimizer_states")}, file)
    with data_only():
        assert torch.load(file) == {"zero_stage": ZeroStageEnum.optimizer_states}
    for parts in ((ZeroStageEnum, "__init_subclass__"), (LossScaler, "backward"), (torch.Tensor, "tofile")):
        torch.save(ByName(*parts), file)
        with pytest.raises(pickle.UnpicklingError), data_only():
            torch.load(file)


def test_nothing_to_resume(sysu_shards, tmp_path):
    refused(train(sysu_shards, tmp_path / "new", "--resume", check=False), "leave --resume out")
