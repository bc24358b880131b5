"""The benchmark of the step, small: every variant computes the same step, and the figures are of what they say."""

import argparse

import pytest

from perf import bench_train

WANTED = argparse.Namespace(device="cpu", small=True, fp32=True, groups=1, rounds=1, compile=False, variants=["*"])


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """The peaks, a process each, are tested by themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_train, "cpu_peak_mib", lambda _, variant: 100.0 + 10 * variant.cmaam)
        return bench_train.measure(WANTED, say=lambda _: None)


def test_every_way_to_do_the_step_has_the_same_loss(rows):
    """By definitions or kernels, in whatever layout; and different modules differ."""
    for what in ((False, False), (False, True), (True, False), (True, True)):
        losses = [row["first_loss"] for row in rows if (row["cmaam"], row["ipcam"]) == what]
        assert len(losses) >= (2 if what[0] == what[1] else 1)
        assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-4)
    assert len({round(row["first_loss"], 2) for row in rows}) == 4


def test_the_figures_are_of_the_step(rows):
    for row in rows:
        assert row["step_ms"] == pytest.approx(sum(row[f"{phase}_ms"] for phase in bench_train.PHASES), rel=1e-6)
        assert row["images"] == 24
    assert next(row for row in rows if row["name"] == bench_train.PLAIN)["ratio_to_plain"] == 1
    assert set(bench_train.added(rows)) == {
        f"added_{what}_{way}" for what in ("step_ms", "peak_mib") for way in ("definitions", "kernels", "ratio")
    }
    assert bench_train.table(rows).count("\n") == len(rows)


def test_the_peak_of_a_larger_step_is_larger():
    whole = next(variant for variant in bench_train.VARIANTS if variant.name == bench_train.PLAIN)
    one, four = (bench_train.cpu_peak_mib(argparse.Namespace(small=True, groups=groups), whole) for groups in (1, 4))
    assert 10 < one < four / 2
