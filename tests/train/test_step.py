"""What a training step asks of a GPU: how convolutions are chosen, and that the host never waits for it."""

import functools
import json
import math
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tacaf.data.index import ShardIndex, select_training
from tacaf.data.plan import Plan
from tacaf.data.training_pipeline import TrainingPipeline
from tacaf.data.training_source import TrainingSource
from tacaf.interfaces import DrawnPairs
from tacaf.losses.total import LossConfig, TacafLoss
from tacaf.train.collapse import STEPS, CollapseWatch
from tacaf.train.config import Config, load_config
from tacaf.train.forward import draw, pairs_of
from tacaf.train.processes import Place, choose_convolutions
from tacaf.train.run_log import Extent, RunLog
from tacaf.train.step import stacked
from tacaf.train.step_figures import LaunchedStep
from tacaf.train.step_reader import StepReader, lag_of
from tacaf.train.train_config import TrainConfig
from tacaf.train.update import poisoned
from tacaf.transfer import HostCopy
from tests.fake_gpu import DEVICE, OnGpu, Operators, Timeline, without_pinning
from tests.model import cases as model_cases
from tests.model.cases import tiny_batch, tiny_model
from tests.processes import LIMIT_S
from tests.train.tiny_runs import ROOT, TINY, command_of, records_of, refused, run, same_run, steps_of


@pytest.mark.parametrize("deterministic", [False, True])
def test_convolutions_are_the_fastest_or_reproducible(deterministic):
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False):
        choose_convolutions(deterministic)
        assert torch.backends.cudnn.deterministic is deterministic
        assert torch.backends.cudnn.benchmark is not deterministic


def test_the_pairs_come_with_the_batch_and_are_those_of_its_rows(sysu_shards):
    config = tiny_config(sysu_shards)
    plan = Plan(select_training(ShardIndex.open(config.data.shards), config.data.split), config.data.plan, config.seed)
    batches = TrainingPipeline(
        ShardIndex.open(config.data.shards),
        TrainingSource(plan, config.data.augment, steps=3),
        start=(1, 2),
        draw_pairs=functools.partial(draw, config),
    )
    for _ in range(2):
        batch = next(batches)
        assert pairs_of(batch, config) is batch.pairs
        for found, expected in zip(batch.pairs, draw(config, batch, batch.epoch, batch.step), strict=True):
            assert all(map(torch.equal, found, expected))
        assert all(pairs is not None for pairs in pairs_of(batch._replace(pairs=DrawnPairs()), config))


def test_a_batch_moves_without_a_wait_and_keeps_on_the_host_what_only_logs_read(monkeypatch):
    without_pinning(monkeypatch)
    batch = tiny_batch()
    batch = batch._replace(pairs=DrawnPairs(model_cases.pairs_of(batch, 3), model_cases.pairs_of(batch, 4)))
    with Operators() as operators:
        moved = batch.to(DEVICE)
    assert operators.waiting == []
    assert sum("_to_copy" in name for name in operators.computing) == 2, "the images, and everything else"
    for column in (moved.images_BCHW, moved.label_B, *moved.pairs.pairs3, *moved.pairs.pairs4):
        assert column.device == DEVICE
    assert all(len(column) == len(batch.label_B) for column in (moved.label_B, *moved.pairs.pairs3))
    assert moved.row_B is batch.row_B
    here = batch.to(torch.device("cpu"))
    assert torch.equal(here.label_B, batch.label_B)
    for found, expected in zip(here.pairs, batch.pairs, strict=True):
        assert all(map(torch.equal, found, expected))


def tiny_config(shards: Path) -> Config:
    settings = [f"data.shards={shards}", "run=unused", *TINY]
    return load_config(Path(__file__).parent.parent.parent / "launch" / "configs" / "demo.yaml", settings)


@pytest.mark.parametrize(
    ("model_changes", "loss_changes"),
    [
        ({}, {}),
        ({"kernels": "reference"}, {}),
        ({"kernels": "reference", "cmaam": {"mask": "deviation"}}, {"triplet": "wrt", "dense_unit": "margin"}),
        ({"cmaam": {"self_similarity": 0.5, "recompute": True}}, {"triplet": "adp", "triplet_unit": "distance"}),
        ({"kernels": "reference", "chunk": 2}, {"label_smoothing": 0.1, "dense_unit": "distance"}),
    ],
)
def test_forward_and_backward_make_the_host_wait_for_nothing(monkeypatch, model_changes, loss_changes):
    """The whole model and its losses on a device without values, where reading one raises an error."""
    without_pinning(monkeypatch)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no such device
    model = tiny_model(**model_changes).train().to(DEVICE)
    batch = tiny_batch()
    batch = batch._replace(pairs=DrawnPairs(model_cases.pairs_of(batch, 3), model_cases.pairs_of(batch, 4))).to(DEVICE)
    with Operators() as operators:
        output = model(batch.images_BCHW, batch.label_B, batch.visible, *batch.pairs)
        loss, terms = TacafLoss(LossConfig(**loss_changes))(output, batch.label_B)
        poisoned(loss, stacked(loss, terms)).backward()
    assert len(operators.computing) > 300
    assert operators.waiting == []
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


STAGES = (0, 1, 2, 3)
KINDS = [*(f"sgd-{stage}" for stage in STAGES), "adamw-0", "adamw-1", "sgd-0-clipped", "sgd-1-clipped"]
CASES = [f"{case}-{kind}" for case in ("first", "later", "waits") for kind in KINDS]


@pytest.fixture(scope="module")
def cases(once) -> dict[str, dict]:
    def make(file: Path) -> None:
        words = [sys.executable, "-W", "ignore", "-m", "tests.train.step_cases", *CASES]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        file.write_text(done.stdout)

    lines = once("step_cases", make).read_text().splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return {case["case"]: case for case in found}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["first", "later"])
def test_a_bad_step_updates_nothing(cases, which, kind):
    """Not by the gradient, nor by momentum and weight decay; and the steps after it are as if it had had no update."""
    assert cases[f"{which}-{kind}"]["moved"] == 0
    assert cases[f"{which}-{kind}"]["difference"] == 0


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("sgd-3")])
def test_the_host_waits_for_nothing_before_the_optimisers_step_is_launched(cases, kind):
    found = cases[f"waits-{kind}"]
    assert (found["waiting"], found["synchronized"], found["sent"]) == ([], 0, 0)


def test_zero_3_waits_for_its_own_norm_alone(cases):
    assert len(cases["waits-sgd-3"]["waiting"]) <= 3
    assert cases["waits-sgd-3"]["synchronized"] == 0


def test_a_copy_to_the_host_is_waited_for_when_it_is_read(monkeypatch):
    """With stand-ins for CUDA's event and for pinned memory."""
    said: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            said.append("record")

        def synchronize(self) -> None:
            said.append("synchronize")

    empty = torch.empty
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **options: empty(*size, **options))
    copy = HostCopy(torch.tensor([1.5, 2.5]).as_subclass(OnGpu))
    assert said == ["record"]
    assert copy.wait().tolist() == [1.5, 2.5]
    assert said == ["record", "synchronize"]


def test_a_cpu_reads_at_once_and_a_gpu_one_step_later():
    assert lag_of(torch.device("cpu")) == 0
    assert lag_of(torch.device("cuda", 0)) == 1


@pytest.mark.parametrize(
    ("host_s", "wait_s", "gpu_s"),
    [(0.08, 0.06, 0.0004), (0.02, 0.005, 0.1), (0.05, 0.0, 0.05)],
    ids=["the host sets the pace", "the GPU sets the pace", "neither"],
)
def test_a_steps_time_and_wait_are_its_own_however_late_it_is_read(monkeypatch, tmp_path, host_s, wait_s, gpu_s):
    """Two epochs of four steps with an evaluation after each, by the clocks of a host and of a GPU."""
    timeline = Timeline(monkeypatch)
    log, reader = reader_of(tmp_path)
    ends = []
    for number in range(8):
        timeline.now_s += host_s
        timeline.launch(gpu_s)
        ends.append(timeline.free_s)
        reader.add(launched_step(number, wait_s), 0)
        if number % 4 == 3:
            reader.finish(0)
            timeline.now_s += 3.0
            log.next_step()
            ends.append(timeline.now_s)
    steps = steps_of(tmp_path)
    pace_ms = 1000 * max(host_s, gpu_s)
    first_ms = 1000 * (host_s + gpu_s)
    assert [step["step_ms"] for step in steps] == pytest.approx(2 * [first_ms, pace_ms, pace_ms, pace_ms], abs=0.051)
    assert sum(step["step_ms"] for step in steps[:4]) == pytest.approx(1000 * ends[3], abs=0.21)
    assert [step["images_per_s"] for step in steps] == pytest.approx(
        [IMAGES / (first_ms if step % 4 == 0 else pace_ms) * 1000 for step in range(8)], rel=1e-3
    )
    # What the host does in an iteration: it launches a step, and then waits for the step before.
    iteration_s = [host_s, host_s, max(host_s, gpu_s), max(host_s, gpu_s)]
    assert [step["data_wait_share"] for step in steps] == pytest.approx(
        2 * [wait_s / each for each in iteration_s], abs=1e-4
    )


def test_a_network_that_has_collapsed_is_reported_once(monkeypatch, tmp_path, capsys):
    timeline = Timeline(monkeypatch)
    _, reader = reader_of(tmp_path)
    for number in range(4 + 2 * STEPS):
        timeline.now_s += 0.1
        reader.add(launched_step(number, 0.0, identity=math.log(300), triplet=0.3), 0)
    reader.finish(0)
    found = records_of(tmp_path, "warning")
    assert [record["global_step"] for record in found] == [4 + STEPS], "the first epoch has 4 steps"
    assert "collapsed" in found[0]["text"]
    assert capsys.readouterr().err.count("collapsed") == 1


IMAGES = 48


def reader_of(folder: Path) -> tuple[RunLog, StepReader]:
    """The log and the reader of a training on a GPU."""
    place, config = Place(0, 1, torch.device("cuda", 0)), TrainConfig(log_every=1)
    log = RunLog(config, folder, place, Extent(8, IMAGES, None), done=0, monitor=SimpleNamespace(enabled=False))
    return log, StepReader(log, SimpleNamespace(), lag_of(place.device), CollapseWatch(LossConfig(), 300))


def launched_step(number: int, wait_s: float, **terms: float) -> LaunchedStep:
    values = {"loss": 1.0, "identity": 4.0, "triplet": 0.2} | terms
    return LaunchedStep(
        number=number,
        epoch=number // 4,
        step=number % 4,
        row_B=np.arange(IMAGES),
        rates={"new": 0.1},
        wait_s=wait_s,
        names=tuple(values),
        values=HostCopy(torch.tensor(list(values.values())).as_subclass(OnGpu)),
    )


def odd_training(shards: Path, folder: Path, lag: int, bad: int, *values: str) -> subprocess.CompletedProcess:
    script, *words = command_of(shards, folder, *values)
    assert script == "launch/train.py"
    return run("-m", "tests.train.odd_training", lag, bad, *words, check=False)


@pytest.fixture(scope="module")
def skipped(sysu_shards, tmp_path_factory) -> list[Path]:
    """Runs that leave step 4 of 6 out, with figures read at once and a step later."""
    runs = [tmp_path_factory.mktemp("runs") / f"lag-{lag}" for lag in (0, 1)]
    for lag, folder in enumerate(runs):
        done = odd_training(sysu_shards, folder, lag, 3, "train.on_nonfinite=skip")
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        assert "step 3 skipped" in done.stderr
        assert "built successfully" not in done.stdout
        assert "at epoch 1, step 0" in done.stderr
    return runs


def test_reading_later_is_the_same_training_bit_for_bit(skipped):
    same_run(*skipped)
    bad = steps_of(skipped[1])[3]
    assert (bad["global_step"], bad["loss"], bad["gradient_norm"]) == (4, None, None)
    assert [step["gradient_norm"] for step in steps_of(skipped[0])] == [
        step["gradient_norm"] for step in steps_of(skipped[1])
    ]
    reports = [json.loads((folder / "nonfinite-step-3-rank-0.json").read_text()) for folder in skipped]
    assert reports[0] == reports[1], "the samples are the bad step's own"
    assert all(0 <= step["data_wait_share"] <= 1 for run in skipped for step in steps_of(run))


def test_everything_is_read_before_a_save_and_a_resume_goes_on_from_it(sysu_shards, skipped, tmp_path):
    states = [
        json.loads((folder / "checkpoints" / "step-00000004" / "manifest.json").read_text())["facts"]["state"]
        for folder in skipped
    ]
    assert states[0] == states[1]
    assert states[1]["skipped"] == 1
    folder = shutil.copytree(skipped[1], tmp_path / "resumed")
    shutil.rmtree(folder / "checkpoints" / "step-00000006")
    for name in ("model.safetensors", "report.html"):
        (folder / name).unlink()
    done = odd_training(sysu_shards, folder, 1, -1, "train.on_nonfinite=skip", "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    same_run(skipped[0], folder)


def test_a_bad_step_stops_the_run_one_step_later_under_its_own_number(sysu_shards, tmp_path):
    folder = tmp_path / "stopped"
    done = odd_training(sysu_shards, folder, 1, 3)
    refused(done, "at epoch 1, step 0")
    assert [step["global_step"] for step in steps_of(folder)] == [1, 2, 3]
    assert (folder / "nonfinite-step-3-rank-0.json").is_file()
    assert not (folder / "checkpoints" / "step-00000004").exists()


def test_one_ranks_bad_loss_is_skipped_by_all(sysu_shards, tmp_path):
    folder = tmp_path / "two"
    _, *words = command_of(sysu_shards, folder, "train.on_nonfinite=skip", "train.epochs=1", "train.save_every_steps=1")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    done = run(*launcher, "-m", "tests.train.odd_training", 1, 1, *words, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "step 1 skipped" in done.stderr
    assert "on rank 1" in done.stderr
    assert [file.name for file in folder.glob("nonfinite-*")] == ["nonfinite-step-1-rank-1.json"]
    assert [step["gradient_norm"] is None for step in steps_of(folder)] == [False, True, False]
    first, second, third = (parameters_of(folder / "checkpoints" / f"step-{step:08d}") for step in (1, 2, 3))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(second[name], third[name]) for name in first)


def parameters_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """What is learned, without running statistics."""
    module = torch.load(min(checkpoint.glob("*model_states.pt")), weights_only=False)["module"]
    return {name: value for name, value in module.items() if "running" not in name and "tracked" not in name}
