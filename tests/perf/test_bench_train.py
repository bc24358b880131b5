"""The benchmark of the step, small: every variant computes the same step, and the figures are of what they say."""

import argparse

import pytest
import torch

from perf import bench_train
from perf.parts import train_step
from perf.parts.fake_gpu import FakeGraph, fake_gpu

pytestmark = pytest.mark.slow  # steps of a whole model

WANTED = argparse.Namespace(device="cpu", small=True, fp32=True, groups=1, rounds=1, compile=False, variants=["*"])


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """The peaks, a process each, are tested by themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_train, "cpu_peak_mib", lambda _, variant: 100.0 + 10 * variant.cmaam)
        return bench_train.measure(WANTED, say=lambda _: None)


@pytest.mark.slow
def test_every_way_to_do_the_step_has_the_same_loss(rows):
    """By definitions or kernels, in whatever layout; and different modules differ."""
    for what in ((False, False), (False, True), (True, False), (True, True)):
        losses = [row["first_loss"] for row in rows if (row["cmaam"], row["ipcam"]) == what]
        assert len(losses) >= (2 if what[0] == what[1] else 1)
        assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-4)
    assert len({round(row["first_loss"], 2) for row in rows}) == 4


def test_a_cpu_is_offered_no_graph():
    """A step that could not be captured must not appear in a table as one that was."""
    graphed = [variant for variant in bench_train.VARIANTS if variant.graph]
    assert {variant.compile for variant in graphed} == {True, False}
    assert not any(variant.graph for variant in bench_train.chosen(["*"], "cpu"))
    assert [variant for variant in bench_train.chosen(["*"], "cuda") if variant.graph] == graphed


@pytest.mark.slow
def test_the_figures_are_of_the_step(rows):
    for row in rows:
        assert row["step_ms"] == pytest.approx(sum(row[f"{phase}_ms"] for phase in bench_train.PHASES), rel=1e-6)
        assert row["images"] == 24
    assert next(row for row in rows if row["name"] == bench_train.PLAIN)["ratio_to_plain"] == 1
    assert set(bench_train.added(rows)) == {
        f"added_{what}_{way}" for what in ("step_ms", "peak_mib") for way in ("definitions", "kernels", "ratio")
    }
    assert bench_train.table(rows).count("\n") == len(rows)


@pytest.mark.slow
def test_the_peak_of_a_larger_step_is_larger():
    whole = next(variant for variant in bench_train.VARIANTS if variant.name == bench_train.PLAIN)
    one, four = (bench_train.cpu_peak_mib(argparse.Namespace(small=True, groups=groups), whole) for groups in (1, 4))
    assert 10 < one < four / 2


FAST = "whole, kernels, channels-last, fused, cudnn.benchmark"
GRAPH = f"{FAST}, graph"
ON_GPU = argparse.Namespace(**vars(WANTED) | {"device": "cuda", "rounds": 2, "variants": [FAST, GRAPH]})
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")


def step_of(name: str) -> train_step.Step:
    variant = next(variant for variant in bench_train.VARIANTS if variant.name == name)
    kind = train_step.GraphedStep if variant.graph else train_step.Step
    return kind(variant, train_step.batch("cpu", 1, 96, 48), "cpu", small=True, bf16=False)


@without_gpu
def test_a_replayed_step_is_the_step():
    """Optimiser and all: as many steps, the same bits."""
    with fake_gpu():
        replayed, usual = step_of(GRAPH), step_of(FAST)
        replayed.capture()
        losses = [replayed() for _ in range(2)]
        for _ in range(train_step.WARM_UP + 1):  # the capture runs one replay to compare losses
            usual()
        assert losses == [usual() for _ in range(2)]
        for one, other in zip(replayed.model.parameters(), usual.model.parameters(), strict=True):
            assert torch.equal(one, other)


@without_gpu
def test_the_row_of_a_replayed_step_has_one_time():
    with fake_gpu():
        rows = {row["name"]: row for row in bench_train.measure(ON_GPU, say=lambda _: None)}
    assert rows[GRAPH]["error"] is None
    assert rows[GRAPH]["first_loss"] == rows[FAST]["first_loss"]
    assert len(rows[GRAPH]["steps_ms"]) == 2
    assert [rows[GRAPH][f"{phase}_ms"] for phase in bench_train.PHASES] == [None] * 3
    assert rows[GRAPH]["images_per_s"] > 0
    assert len(bench_train.table(list(rows.values())).splitlines()) == 3


@without_gpu
def test_a_failing_capture_is_the_rows_error_and_says_where(monkeypatch):
    """An assertion without words, too."""

    def refuse(graph: FakeGraph, *_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(FakeGraph, "capture_begin", refuse)
    with fake_gpu():
        rows = {row["name"]: row for row in bench_train.measure(ON_GPU, say=lambda _: None)}
    assert rows[GRAPH]["error"].startswith("AssertionError: no message (perf/test_bench_train.py:")
    assert "raise AssertionError" in rows[GRAPH]["error"]
    assert rows[FAST]["error"] is None
    assert rows[FAST]["step_ms"] > 0


@without_gpu
def test_a_graph_that_is_not_the_step_gives_no_figure(monkeypatch):
    monkeypatch.setattr(FakeGraph, "replay", lambda graph: None)
    with fake_gpu(), pytest.raises(RuntimeError, match="expected a replayed loss"):
        step_of(GRAPH).capture()
