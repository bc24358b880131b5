"""The short form of perf/crash_test.py: a few kills, one of them in a save, and the same end."""

from pathlib import Path

import pytest

from perf import crash_test

pytestmark = pytest.mark.slow  # trains


def test_killed_and_resumed_is_the_uninterrupted_run(sysu_shards, tmp_path):
    result = crash_test.crash_test(sysu_shards, tmp_path, kills=4, seed=3)
    assert len(result["kills"]) == 4
    assert result["kills"][3]["half_saved"], "the last one came in the middle of a save"
    assert result["differences"] == []


def test_a_difference_is_found(sysu_shards, tmp_path):
    for name in ("one", "two"):
        crash_test.run_to_end(sysu_shards, tmp_path / name)
    assert crash_test.differences(tmp_path / "one", tmp_path / "two") == []
    metrics = tmp_path / "two" / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[1:]))
    assert any("steps in metrics.jsonl" in text for text in crash_test.differences(tmp_path / "one", tmp_path / "two"))


def test_a_run_killed_before_its_first_checkpoint_begins_again(sysu_shards, tmp_path):
    run = Path(tmp_path / "early")
    with crash_test.start_training(sysu_shards, run) as process:
        while not (run / "config.yaml").exists():
            assert process.poll() is None
        process.kill()
        process.communicate()
    assert not list((run / "checkpoints").glob("step-*"))
    crash_test.run_to_end(sysu_shards, run)
    assert len(crash_test.steps_of(run)) == crash_test.STEPS * crash_test.EPOCHS
