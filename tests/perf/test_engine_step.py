"""engine_step.py finds planted faults, and passes the engine with one rank and with two, whatever the rounding."""

import json

import pytest

from perf.calls.engine_step import CPU_TOLERANCE, SAME_TOLERANCE
from tests.perf.engine_faults import FAULTS
from tests.train.tiny_runs import run

pytestmark = pytest.mark.slow


def differences(faults: tuple[str, ...], ranks: int) -> dict[str, list[dict]]:
    """The rows of each fault: ZeRO stages 0 and 1, on every rank."""
    done = run("-m", "tests.perf.engine_faults", *faults, ranks=ranks)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {fault: [row for row in rows if row["fault"] == fault] for fault in faults}


def test_faults_are_found_and_rounding_is_none():
    found = differences(FAULTS, 1)
    for fault, rows in found.items():
        expected = [(stage, tolerance) for stage in (0, 1) for tolerance in (CPU_TOLERANCE, SAME_TOLERANCE)]
        assert [(row["zero"], row["tolerance"]) for row in rows] == expected
        for row in rows:
            if fault == "none":
                assert row["right"]
            elif fault == "rounding":  # which the same device has not
                assert row["difference"] < CPU_TOLERANCE / 5
                assert row["right"] == (row["difference"] <= row["tolerance"])
            else:
                assert not row["right"]
                assert row["difference"] > 2 * CPU_TOLERANCE


def test_the_mean_gradient_of_two_ranks_is_that_of_one():
    """Both have the same batch. Gradients that are added up and not averaged would have twice the size."""
    rows = differences(("none",), 2)["none"]
    assert sorted(row["zero"] for row in rows) == [0] * 4 + [1] * 4
    assert all(row["right"] for row in rows)
