"""Kills a training with SIGKILL again and again and compares its end with an uninterrupted run's.

    python perf/crash_test.py [--kills 20] [--seed 0] [--ranks 1] [--set a.b=c ...] [--json FILE]

Every kill is at a random moment of the run, every fourth one in the middle of a save; each time the run continues with
--resume. At the end of every run the weights must be the uninterrupted run's bit for bit, those of split classifiers
with their optimiser's state among them, and metrics.jsonl must hold every step once with the same losses. A tiny model
on a procedural set, one thread for each rank; all ranks are killed at once. Exit status 1 if anything differs.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("perf.crash_test")

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tacaf.checkout import ROOT
from tacaf.command import Parser, entry, to_path
from tacaf.files import write_json
from tacaf.model.file import MODEL
from tacaf.provenance import environment
from tacaf.run_files import CHECKPOINTS_FOLDER, CONFIG_FILE, METRICS_FILE

STEPS, EPOCHS = 12, 5
TINY = {
    "model.backbone": "{width: 8, blocks: [1, 1, 1, 1]}",
    "model.ipcam": "{node_width: 16, attention_width: 8, pair_width: 8}",
    "data.plan": "{identities_per_batch: 4, images_per_identity: 2}",
    "data.threads": "1",
    "train.epochs": str(EPOCHS),
    "train.steps_per_epoch": str(STEPS),
    "train.save_every_steps": "2",
    "train.keep": "2",
    "evaluation.every": "2",
    "evaluation.ranked_lists": "0",
    "evaluation.modes": "[all_search]",
}


def make_shards(folder: Path) -> Path:
    """A procedural set of 12 identities, packed."""
    command = [sys.executable, "-m", "shards"]
    synth = ["synth", "--out", folder / "raw", "--identities", "12", "--images-per-camera", "2", "--height", "96"]
    pack = ["pack", "sysu_mm01", "--root", folder / "raw", "--out", folder / "shards"]
    for words in (synth, pack):
        subprocess.run([*command, *map(str, words)], cwd=ROOT, check=True, capture_output=True)
    return folder / "shards"


@dataclass(frozen=True)
class Training:
    """What is trained: on which shards, on how many ranks, and with which settings (a.b=c) over those of `TINY`."""

    shards: Path
    ranks: int = 1
    settings: tuple[str, ...] = ()

    @property
    def launcher(self) -> list[str]:
        if self.ranks == 1:
            return [sys.executable]
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        program = str(Path(sys.executable).parent / "deepspeed")
        return [program, "--num_accelerators", str(self.ranks), "--master_port", str(port)]


def start_training(training: Training, run: Path) -> subprocess.Popen[str]:
    """Start the training in its own process group. It resumes the run if the folder already has one."""
    own = [*(f"{name}={value}" for name, value in TINY.items()), f"data.shards={training.shards}", f"run={run}"]
    words = [part for value in (*own, *training.settings) for part in ("--set", value)]
    flags = ["--resume"] if (run / CONFIG_FILE).exists() else []
    outside = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return subprocess.Popen(
        [*training.launcher, "launch/train.py", "--config", "launch/configs/demo.yaml", *words, *flags],
        cwd=ROOT,
        env={**outside, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_to_end(training: Training, run: Path) -> float:
    """Seconds it took. RuntimeError if it failed."""
    began = time.monotonic()
    with start_training(training, run) as process:
        _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the training ended with status {process.returncode}:\n{errors[-3000:]}")
    return time.monotonic() - began


def kill_once(training: Training, run: Path, after_s: float, in_save: bool) -> dict[str, Any] | None:
    """Start and kill; how far the run had come, or None if it ended before the kill."""
    began = time.monotonic()
    with start_training(training, run) as process:
        while process.poll() is None:
            saving = in_save and _stopped_in_a_save(process, run)
            if saving or (time.monotonic() - began >= after_s and not in_save):
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.001)
        _, errors = process.communicate()
    if process.returncode == -signal.SIGKILL:
        left = [path.name for path in (run / CHECKPOINTS_FOLDER).glob(".tmp-*")]
        saved = sorted(path.name for path in (run / CHECKPOINTS_FOLDER).glob("step-*"))
        return {"after_s": round(time.monotonic() - began, 2), "half_saved": left, "newest": saved[-1:] or None}
    if process.returncode:
        raise RuntimeError(f"the training ended with status {process.returncode}:\n{errors[-3000:]}")
    return None


def _stopped_in_a_save(process: subprocess.Popen[str], run: Path) -> bool:
    """Whether it is writing a checkpoint; if so it is stopped, so that the save does not end before the kill."""
    half_saved = (run / CHECKPOINTS_FOLDER).glob
    if not any(half_saved(".tmp-*")):
        return False
    os.killpg(process.pid, signal.SIGSTOP)
    if any(half_saved(".tmp-*")):
        return True
    os.killpg(process.pid, signal.SIGCONT)
    return False


def steps_of(run: Path) -> list[tuple[Any, ...]]:
    records = [json.loads(line) for line in (run / METRICS_FILE).read_text().splitlines()]
    return [(r["global_step"], r["loss"], tuple(r["terms"].items())) for r in records if r["kind"] == "step"]


def weights_of(run: Path) -> dict[str, np.ndarray]:
    """The model's, and what the last checkpoint has of split classifiers: each rank's weights and optimiser state."""
    ranges = sorted((run / CHECKPOINTS_FOLDER).glob(f"step-{STEPS * EPOCHS:08d}/classifiers-*.safetensors"))
    split = {f"{path.name}: {name}": value for path in ranges for name, value in load_file(path).items()}
    return {**load_file(run / MODEL), **split}


def differences(expected: Path, found: Path) -> list[str]:
    """What is not the same in two finished runs; empty when nothing."""
    weights = [weights_of(run) for run in (expected, found)]
    problems = [
        name
        for name in weights[0].keys() | weights[1].keys()
        if name not in weights[0] or name not in weights[1] or not np.array_equal(weights[0][name], weights[1][name])
    ]
    steps = steps_of(found)
    if [step[0] for step in steps] != list(range(1, STEPS * EPOCHS + 1)):
        problems.append(f"steps in metrics.jsonl: {[step[0] for step in steps]}")
    return problems + (["losses in metrics.jsonl"] if steps != steps_of(expected) else [])


def crash_test(training: Training, folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Train once without interruption, kill other runs `kills` times in all, and return how they differ from the first.

    A run that ends before its next kill is compared, and a new run takes the remaining kills.
    """
    draw = random.Random(seed)
    whole_s = run_to_end(training, folder / "whole")
    done: list[dict[str, Any]] = []
    runs = [folder / "killed-0"]
    while len(done) < kills:
        in_save = len(done) % 4 == 3
        one = kill_once(training, runs[-1], draw.uniform(0.3, whole_s), in_save)
        if one is None:
            runs.append(folder / f"killed-{len(runs)}")
        else:
            done.append({"run": len(runs) - 1, **one, "meant_for_a_save": in_save})
    run_to_end(training, runs[-1])
    found = [f"{run.name}: {text}" for run in runs for text in differences(folder / "whole", run)]
    return {"whole_s": round(whole_s, 1), "runs": len(runs), "kills": done, "differences": found}


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="a setting of the training")
    parser.add_argument("--json", type=to_path)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        training = Training(make_shards(folder), args.ranks, tuple(args.set))
        result = crash_test(training, folder, args.kills, args.seed)
    if args.json:
        write_json(args.json, {"environment": environment(args.ranks), "settings": args.set, "result": result})
    saves = sum(bool(one["half_saved"]) for one in result["kills"])
    print(f"{len(result['kills'])} kills over {result['runs']} runs, {saves} of them in the middle of a save")
    print("the same weights and steps" if not result["differences"] else f"different: {result['differences']}")
    return 1 if result["differences"] else 0
