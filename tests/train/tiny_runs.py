"""Trainings of a few steps, as a user types them, and what they leave in their folders."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.forked import forkable, run_forked, run_ranks
from tests.processes import LIMIT_S, fresh_port

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
STEPS = 3  # of an epoch; two epochs
TINY = [
    "model.backbone={width: 8, blocks: [1, 1, 1, 1]}",
    "model.ipcam={node_width: 16, attention_width: 8, pair_width: 8, part_weight: 0.5}",
    "model.cmaam.consistency=true",  # all there is
    "loss.ic=0.3",
    "data.plan={identities_per_batch: 4, images_per_identity: 2}",
    "data.threads=1",
    "train.epochs=2",
    f"train.steps_per_epoch={STEPS}",
    "train.save_every_steps=2",
    "train.keep=9",
    "train.precision=fp32",
    "evaluation.every=1",
    "evaluation.batch_size=16",
    "evaluation.ranked_lists=2",
]


def start(*command: object, ranks: int = 1) -> subprocess.Popen:
    """A command of the project in a process of its own, on one thread, so that sums are the same every time."""
    launcher = [BIN / "deepspeed", "--num_accelerators", ranks] if ranks > 1 else [sys.executable]
    if ranks > 1:
        launcher += ["--master_port", fresh_port()]
    words = [str(part) for part in (*launcher, *command)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(words, cwd=ROOT, env=environment(), text=True, **pipes)


def run(*command: object, ranks: int = 1, check: bool = True, fork: bool = True) -> subprocess.CompletedProcess:
    """A command of the project to its end, with `fork` without its imports and without a launcher (tests/forked.py)."""
    words = [str(part) for part in command]
    if fork and forkable(words):
        done = run_ranks(words, ranks, environment()) if ranks > 1 else run_forked(words, environment())
    else:
        with start(*words, ranks=ranks) as process:
            out, err = process.communicate(timeout=LIMIT_S)
        done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def environment() -> dict[str, str]:
    found = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}
    return {name: value for name, value in found.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}


def command_of(shards: Path, folder: Path, *more: str) -> list[str]:
    """The words of a tiny training; `more` are values (a=b) and flags."""
    values = [f"data.shards={shards}", f"run={folder}", *TINY, *(value for value in more if "=" in value)]
    flags = [value for value in more if "=" not in value]
    settings = [part for value in values for part in ("--set", value)]
    return ["launch/train.py", "--config", "launch/configs/demo.yaml", *settings, *flags]


def train(shards: Path, folder: Path, *more: str, ranks: int = 1, check: bool = True) -> subprocess.CompletedProcess:
    return run(*command_of(shards, folder, *more), ranks=ranks, check=check)


def records_of(folder: Path, kind: str) -> list[dict]:
    path = folder / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [record for record in records if record["kind"] == kind]


def steps_of(folder: Path) -> list[dict]:
    return records_of(folder, "step")


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """The model file's, by name."""
    return load_file(folder / "model.safetensors")


def same_run(expected: Path, found: Path) -> None:
    """The same weights bit for bit, and every step once with the same losses."""
    weights = [tensors_of(folder) for folder in (expected, found)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name
    losses = [
        [(record["global_step"], record["loss"], record["terms"]) for record in steps_of(folder)]
        for folder in (expected, found)
    ]
    assert losses[0] == losses[1]


def refused(done: subprocess.CompletedProcess, says: str) -> None:
    """Exit code 2, one line of error, no traceback."""
    assert done.returncode == 2, done.stdout[-2000:] + done.stderr[-2000:]
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1
