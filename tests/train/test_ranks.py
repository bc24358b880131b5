"""The same mathematics on any number of ranks and under every ZeRO stage, and a checkpoint for another number."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tacaf.child_processes import child_environment
from tests.forked import run_ranks
from tests.processes import LIMIT_S
from tests.tolerances import assert_same_losses, assert_same_training

ROOT = Path(__file__).parent.parent.parent
JOB = "tests/train/ranks_job.py"
STAGES = (0, 1, 2, 3)


def run_job(ranks: int, what: str, shards: Path, out: Path) -> str:
    """The job on so many ranks, one thread each; what they printed."""
    done = run_ranks([JOB, what, str(shards), str(out)], ranks, child_environment(OMP_NUM_THREADS="1"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def trained(sysu_shards, once) -> Callable[[int], Path]:
    """The folder of what so many ranks wrote while they trained."""

    def by(ranks: int) -> Path:
        def make(folder: Path) -> None:
            folder.mkdir()
            run_job(ranks, "train", sysu_shards, folder)

        return once(f"ranks-{ranks}", make)

    return by


@pytest.fixture(scope="module")
def one(trained) -> dict:
    return torch.load(trained(1) / "ranks-1.pt")


@pytest.fixture(scope="module")
def two(trained) -> dict:
    return torch.load(trained(2) / "ranks-2.pt")


@pytest.fixture(scope="module")
def four(trained) -> dict:
    return torch.load(trained(4) / "ranks-4.pt")


def same_training(one: dict, found: dict) -> None:
    """Losses, gradients and parameters after five steps are those of one process without ZeRO."""
    assert_same_losses(one[0, "sgd"]["steps"], found["steps"])
    assert_same_training(one["start"], one[0, "sgd"]["state"], found["state"])


@pytest.mark.parametrize("stage", STAGES)
def test_zero_changes_nothing(one, stage):
    same_training(one, one[stage, "sgd"])


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_are_one_process_with_the_whole_batch(one, two, stage):
    same_training(one, two[stage, "sgd"])


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_four_ranks_too(one, four, stage):
    same_training(one, four[stage, "sgd"])


def test_a_checkpoint_is_the_same_after_a_way_through_another_number_of_ranks(trained, sysu_shards, tmp_path):
    """Two ranks' checkpoints into one process and out again: every tensor of every stage bit for bit."""
    out = shutil.copytree(trained(2), tmp_path / "ranks")
    lines = re.findall(r"stage \d \w+: (\d+) tensors, (\d+) differ: (.*)", run_job(1, "regroup", sysu_shards, out))
    assert len(lines) == 3
    for tensors, differing, names in lines:
        assert int(tensors) > 100
        assert int(differing) == 0, names


def test_an_infinite_gradient_moves_nothing(sysu_shards, tmp_path):
    """Under every stage, on both of two ranks; the next update works."""
    printed = run_job(2, "nonfinite", sysu_shards, tmp_path)
    for stage in STAGES:
        assert printed.count(f"stage {stage}: loss times inf, norm finite: False") == 2
        assert printed.count(f"stage {stage}: loss times 1.0, norm finite: True") == 2
        assert printed.count(f"stage {stage}: moved by the infinite: False, by the finite: True") == 2


SUM = """
import os, torch
from tacaf import distributed
from tacaf.train.engine import prepare_deepspeed
from tacaf.train.processes import start_distributed, stop_distributed
start_distributed()
total = torch.full((1000,), float(distributed.rank() + 1))
prepare_deepspeed()
import deepspeed
deepspeed.comm.all_reduce(total)
assert total.eq(3).all()
assert distributed.numbers_of_ranks([float(distributed.rank())]) == [[0.0], [1.0]]
if distributed.rank() == 0:
    print("port", os.environ["MASTER_PORT"])
stop_distributed()
assert distributed._control_group is None
"""


@pytest.mark.slow
def test_ranks_leave_nothing_in_shared_memory(tmp_path):
    """DeepSpeed's op for CPU keeps a file of 66 MiB for each rank there, which no process would remove."""
    (tmp_path / "sum.py").write_text(SUM)
    done = subprocess.run(
        [sys.executable, "launch/local_ranks.py", "2", str(tmp_path / "sum.py")],
        cwd=ROOT,
        env=child_environment(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT), LOCAL_SIZE="2"),  # as the deepspeed launcher
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    port = re.search(r"port (\d+)", done.stdout)[1]
    assert not list(Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{port}_*"))
