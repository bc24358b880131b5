"""The step in a CUDA graph: the same training bit for bit, and a reason where it cannot be."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import pytest
import torch

from perf.parts.fake_gpu import fake_gpu
from tacaf.interfaces import Batch, DrawnPairs
from tacaf.losses.total import LossConfig, TacafLoss
from tacaf.train.capture import captured, reason_of
from tacaf.train.config import load_config
from tacaf.train.graphed import WARM_UP, GraphedStep, obstacle, slow_norms
from tacaf.train.step import Computed, stacked
from tacaf.train.update import poisoned
from tests.model.cases import pairs_of, tiny_batch, tiny_model
from tests.train.engine_cases import DEMO
from tests.train.tiny_runs import command_of, records_of, run, same_run, train

pytestmark = [pytest.mark.slow, pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")]
ON = ("train.cuda_graph=true", "deepspeed.zero_optimization.stage=0")


def batch_of(step: int, identities: int = 4) -> Batch:
    batch = tiny_batch(identities, seed=step)._replace(step=step)
    return batch._replace(pairs=DrawnPairs(pairs_of(batch, 3), pairs_of(batch, 4)))


class Trained(NamedTuple):
    state: dict[str, torch.Tensor]
    figures: list[list[float]]
    computations: int  # how often Python went through the model
    said: list[str]


def trained(batches: list[Batch], graph: bool, spoil: Callable[[int], None] = lambda count: None) -> Trained:
    """A tiny model after steps of plain SGD. `spoil` is called at the end of every computation with its number."""
    model, criterion, said, count = tiny_model().train(), TacafLoss(LossConfig()), list[str](), 0
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, 0.01, momentum=0.9, weight_decay=1e-3)

    def compute(batch: Batch) -> Computed:
        nonlocal count
        count += 1
        loss, terms = criterion(model(batch.images_BCHW, batch.label_B, batch.visible, *batch.pairs), batch.label_B)
        figures_F = stacked(loss, terms)
        poisoned(loss, figures_F).backward()
        spoil(count)
        return Computed(terms, figures_F)

    step = GraphedStep(compute, learning, said.append) if graph else compute
    figures = []
    for batch in batches:
        figures.append(step(batch).figures_F.tolist())
        optimizer.step()
        optimizer.zero_grad()
    return Trained(model.state_dict(), figures, count, said)


def assert_same(one: Trained, other: Trained) -> None:
    assert one.figures == other.figures
    for name, tensor in one.state.items():  # running statistics and their counts as well
        assert torch.equal(tensor, other.state[name]), name


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    return [batch_of(step) for step in range(6)]


@pytest.fixture(scope="module")
def expected(batches) -> Trained:
    return trained(batches, graph=False)


def test_replayed_steps_are_the_same_bit_for_bit(batches, expected):
    with fake_gpu():
        found = trained(batches, graph=True)
    assert found.said == []
    assert found.computations == WARM_UP + 1, "the rest was replayed"
    assert_same(expected, found)


def test_a_batch_of_another_shape_runs_as_it_is(batches):
    odd = [*batches[:5], batch_of(5, identities=2), batch_of(6)]
    with fake_gpu():
        found = trained(odd, graph=True)
    assert found.computations == WARM_UP + 2
    assert_same(trained(odd, graph=False), found)


def test_a_failing_capture_says_why_and_the_training_goes_on_as_if_nothing_had_been(batches, expected):
    def waits(count: int) -> None:
        torch.cuda.synchronize()  # permitted but in a capture

    with fake_gpu():
        found = trained(batches, graph=True, spoil=waits)
        assert torch.cuda.current_stream() is torch.cuda.default_stream()
    assert len(found.said) == 1
    assert "train.cuda_graph" in found.said[0]
    assert "not permitted when stream is capturing" in found.said[0]
    assert "(parts/fake_gpu.py:" in found.said[0], "where it was raised"
    assert found.computations == len(batches) + 1
    assert_same(expected, found)


def test_the_captures_own_error_is_told_not_that_of_its_end(monkeypatch):
    with fake_gpu():
        end = torch.cuda.CUDAGraph.capture_end

        def broken_end(graph: torch.cuda.CUDAGraph) -> None:
            end(graph)
            raise RuntimeError("operation failed due to a previous error during capture")

        monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_end", broken_end)
        with pytest.raises(ZeroDivisionError):
            captured(lambda: 1 / 0, torch.cuda.Stream())
        assert torch.cuda.current_stream() is torch.cuda.default_stream()


def test_an_error_without_words_is_told_by_its_place():
    try:
        assert 1 > 2
    except AssertionError as error:
        said = reason_of(error)
    assert said.startswith("AssertionError: ")
    assert "test_graphed.py:" in said
    assert "assert 1 > 2" in said


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("deepspeed.zero_optimization.stage=1", "deepspeed.zero_optimization.stage"),
        ("deepspeed.zero_optimization.stage=3", "deepspeed.zero_optimization.stage"),
        ("train.accumulate=2", "train.accumulate"),
        ("train.compile=true", "train.compile"),
        ("model.cmaam.recompute=true", "model.cmaam.recompute"),
    ],
)
def test_settings_that_cannot_be_captured_are_refused(setting, name):
    words = ["run=unused", "data.shards=unused", *ON]
    load_config(DEMO, words)
    with pytest.raises(Exception, match=f"train.cuda_graph: expected {name}") as raised:
        load_config(DEMO, [*words, setting])
    assert setting.split("=")[1] in str(raised.value)


FUSED = "model.fused_norm=true"


@pytest.mark.parametrize(
    ("settings", "gpu", "slow"),
    [
        ((FUSED,), True, True),
        ((FUSED,), False, False),
        ((), True, False),
        ((FUSED, *ON), True, False),
        ((FUSED, "train.compile=true"), True, False),
    ],
)
def test_fused_norms_without_a_graph_are_slow_on_a_gpu(settings, gpu, slow):
    config = load_config(DEMO, ["run=unused", "data.shards=unused", *settings])
    with fake_gpu() if gpu else nullcontext():
        reason = slow_norms(config)
    assert (reason is not None) == slow
    if reason:
        assert reason.startswith("model.fused_norm: without train.cuda_graph")


def test_a_training_warns_once_of_slow_norms_and_goes_on(sysu_shards, tmp_path):
    words = command_of(sysu_shards, tmp_path / "run", FUSED, "train.epochs=1")[1:]
    done = run("-m", "tests.train.graphed_training", *words)
    assert done.stderr.count("model.fused_norm: without train.cuda_graph") == 1
    assert "replays: 0" in done.stdout
    assert len(records_of(tmp_path / "run", "step")) == 3


def test_what_only_the_run_knows_is_an_obstacle(monkeypatch):
    model = tiny_model()
    assert "no CUDA device" in obstacle(model)
    with fake_gpu():
        assert obstacle(model) is None
        monkeypatch.setattr("tacaf.distributed.world_size", lambda: 2)
        assert "2 ranks" in obstacle(model)
        monkeypatch.undo()
        assert "chunks" in obstacle(tiny_model(chunk=2))


def test_a_training_on_replayed_graphs_is_the_training_without(sysu_shards, tmp_path):
    train(sysu_shards, tmp_path / "plain", ON[1])
    done = run("-m", "tests.train.graphed_training", *command_of(sysu_shards, tmp_path / "graphed", *ON)[1:])
    assert "replays: 3" in done.stdout, "six steps, three of them before the capture"
    assert records_of(tmp_path / "graphed", "warning") == []
    same_run(tmp_path / "plain", tmp_path / "graphed")
    norms = [[step["gradient_norm"] for step in records_of(tmp_path / name, "step")] for name in ("plain", "graphed")]
    assert norms[0] == norms[1]


def test_without_a_gpu_a_training_says_so_and_goes_on(sysu_shards, tmp_path):
    done = train(sysu_shards, tmp_path / "run", *ON, "train.epochs=1")
    assert "train.cuda_graph: there is no CUDA device" in done.stderr
    assert len(records_of(tmp_path / "run", "step")) == 3
    assert len(records_of(tmp_path / "run", "warning")) == 1
