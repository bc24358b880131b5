"""The short form of perf/crash_test.py: a few kills, one of them in a save, and the same end."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from perf import crash_test

pytestmark = pytest.mark.slow  # trains


@pytest.fixture(scope="module")
def tested(sysu_shards, once) -> Path:
    """The folder of a crash test: its runs, and its result as result.json. Read only."""

    def make(folder: Path) -> None:
        folder.mkdir()
        result = crash_test.crash_test(crash_test.Training(sysu_shards), folder, kills=4, seed=3)
        (folder / "result.json").write_text(json.dumps(result))

    return once("crash_test", make)


def test_killed_and_resumed_is_the_uninterrupted_run(tested):
    result = json.loads((tested / "result.json").read_text())
    assert len(result["kills"]) == 4
    assert result["kills"][3]["half_saved"], "the last one came in the middle of a save"
    assert result["differences"] == []


@pytest.mark.long
def test_split_classifiers_are_the_same_after_kills(sysu_shards, tmp_path):
    split = ("model.classifier.sharding=identities", "model.classifier.negatives=0.5")
    training = crash_test.Training(sysu_shards, ranks=2, settings=split)
    result = crash_test.crash_test(training, tmp_path, kills=4, seed=3)
    assert result["kills"][3]["half_saved"], "the last one came in the middle of a save"
    assert result["differences"] == []
    compared = crash_test.weights_of(tmp_path / "whole")
    for rank in (0, 1):
        names = {name.partition(": ")[2] for name in compared if name.startswith(f"classifiers-{rank:05d}-of-00002")}
        assert {"head.classifier/weight", "head.classifier/exp_avg_sq"} <= names


def test_a_difference_is_found(tested, tmp_path):
    one, two = tested / "whole", tmp_path / "two"
    two.mkdir()
    for name in ("metrics.jsonl", "model.safetensors"):
        shutil.copy(one / name, two / name)
    assert crash_test.differences(one, two) == []
    metrics = two / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[1:]))
    assert any("steps in metrics.jsonl" in text for text in crash_test.differences(one, two))
    shutil.copy(one / "metrics.jsonl", metrics)
    weights = load_file(two / "model.safetensors")
    name = min(name for name, tensor in weights.items() if tensor.dtype == np.float32)
    weights[name].flat[0] += 1
    save_file(weights, two / "model.safetensors")
    assert crash_test.differences(one, two) == [name]


def test_a_run_killed_before_its_first_checkpoint_begins_again(sysu_shards, tmp_path):
    run = Path(tmp_path / "early")
    training = crash_test.Training(sysu_shards)
    with crash_test.start_training(training, run) as process:
        while not (run / "config.yaml").exists():
            assert process.poll() is None
        process.kill()
        process.communicate()
    assert not list((run / "checkpoints").glob("step-*"))
    crash_test.run_to_end(training, run)
    assert len(crash_test.steps_of(run)) == crash_test.STEPS * crash_test.EPOCHS
