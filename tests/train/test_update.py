"""The optimiser's step: accumulated gradients, the fused update, going on from a checkpoint; compiled training."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tacaf.train.config import load_config
from tacaf.vocabulary import InputError
from tests.processes import LIMIT_S
from tests.tolerances import assert_same_losses
from tests.train.engine_cases import DEMO
from tests.train.tiny_runs import ROOT, same_run, steps_of, train

SAME_SUMS = (
    *(f"accumulate-sgd-{stage}" for stage in range(4)),
    *("fused-sgd-1", "fused-adamw-1"),
    *(f"split-sgd-{stage}" for stage in range(3)),
    "split-adamw-1",
)
SAME_BITS = ("resume-sgd-2", "resume-adamw-1")


@pytest.fixture(scope="module")
def differences(once) -> dict[str, dict]:
    def make(file: Path) -> None:
        words = [sys.executable, "-W", "ignore", "-m", "tests.train.engine_cases", *SAME_SUMS, *SAME_BITS]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        file.write_text(done.stdout)

    lines = once("engine_cases", make).read_text().splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return {case["case"]: case for case in found}


@pytest.mark.parametrize("case", SAME_SUMS)
def test_the_state_is_what_it_should_be(differences, case):
    """Accumulated: as by hand, from the mean of both gradients. Fused: as unfused. With classifiers that are split by
    identities, accumulated and clipped: as with whole ones.
    """
    assert differences[case]["in_bounds"] <= 1, differences[case]


@pytest.mark.parametrize("case", SAME_BITS)
def test_an_engine_that_loads_a_checkpoint_trains_as_in_one_go(differences, case):
    assert differences[case]["same_bits"], differences[case]


ACCUMULATE = ("train.accumulate=2", "train.steps_per_epoch=4", "train.save_every_steps=2")


def test_a_run_of_accumulated_updates_resumes_bit_for_bit(sysu_shards, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "resumed"
    train(sysu_shards, whole, *ACCUMULATE, "train.epochs=1")
    train(sysu_shards, folder, *ACCUMULATE, "train.epochs=1")
    shutil.rmtree(folder / "checkpoints" / "step-00000004")
    (folder / "model.safetensors").unlink()
    train(sysu_shards, folder, *ACCUMULATE, "train.epochs=1", "--resume")
    same_run(whole, folder)
    norms = [step["gradient_norm"] for step in steps_of(whole)]
    assert [norm is None for norm in norms] == [True, False, True, False], "a norm an update"
    assert steps_of(whole)[0]["lr"] == steps_of(whole)[1]["lr"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (("train.accumulate=2", "train.steps_per_epoch=3"), "steps_per_epoch: .*accumulate = 2"),
        (("train.accumulate=3", "train.save_every_steps=2", "train.steps_per_epoch=3"), "save_every_steps"),
        (("train.compile=true", "deepspeed.zero_optimization.stage=3"), "train.compile: .*stage 0, 1 or 2"),
        (("deepspeed.gradient_clipping=1",), "deepspeed.gradient_clipping"),
    ],
)
def test_what_does_not_go_together_is_refused(values, says):
    words = ["run=unused", "data.shards=unused"]
    load_config(DEMO, words)
    with pytest.raises(InputError, match=says):
        load_config(DEMO, [*words, *values])


@pytest.mark.long
def test_compiled_training_is_the_same(sysu_shards, tmp_path):
    train(sysu_shards, tmp_path / "eager", "evaluation.every=0")
    train(sysu_shards, tmp_path / "compiled", "evaluation.every=0", "train.compile=true")
    eager, compiled = steps_of(tmp_path / "eager"), steps_of(tmp_path / "compiled")
    assert len(eager) == len(compiled) == 6
    assert_same_losses(eager[:3], compiled[:3])
