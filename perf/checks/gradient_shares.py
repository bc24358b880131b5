"""Measures the gradient of each term of the loss on the backbone during a training, from the run's checkpoints.

    python perf/checks/gradient_shares.py --run RUN [RUN ...] --shards SHARDS [--set a.b=c ...] [--json FILE]

At every checkpoint that the run keeps (`train.keep`, `train.save_every`), the same planned batches go through the model
in training mode. For each term, with its weight: the norm of its gradient over the backbone's parameters, as a multiple
of the identity loss's, and its cosine with that one. `--set` changes the configuration for the measurement. Because
CMAAM's terms have no parameters, they can be measured in this way for a run without CMAAM, too.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("perf.checks.gradient_shares")

import argparse
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from perf.checks.loss_gradients import measure
from tacaf.checkpoint import refuse_strange, steps_in
from tacaf.command import Parser, entry, to_path
from tacaf.data.index import ShardIndex, select_training
from tacaf.data.plan import Plan
from tacaf.data.training_pipeline import TrainingPipeline
from tacaf.data.training_source import TrainingSource
from tacaf.files import shown, write_json
from tacaf.model.tacafnet import TacafNet
from tacaf.provenance import environment
from tacaf.run_files import CHECKPOINTS_FOLDER, CONFIG_FILE
from tacaf.train.config import load_config
from tacaf.train.new_model import build_model
from tacaf.train.regroup import data_only
from tacaf.vocabulary import InputError

MODEL_FILE = "mp_rank_00_model_states.pt"  # DeepSpeed's name; up to ZeRO stage 2 it holds all weights


def measure_along(run: Path, shards: Path, settings: Sequence[str], count: int) -> dict[str, Any]:
    """The shares at every kept checkpoint, on the first batches after the run's last step."""
    config = load_config(run / CONFIG_FILE, [f"data.shards={shards}", *settings])
    if config.zero_stage == 3:
        raise InputError(
            f"{shown(run)}: expected ZeRO stage 0, 1 or 2, whose checkpoints hold whole weights in one file, got 3;"
            " train it with deepspeed.zero_optimization.stage: 1"
        )
    checkpoints = steps_in(run / CHECKPOINTS_FOLDER)
    if not checkpoints:
        raise InputError(f"{shown(run)} has no checkpoints")
    index = ShardIndex.open(config.data.shards)
    plan = Plan(select_training(index, config.data.split), config.data.plan, config.seed)
    source = TrainingSource(plan, config.data.augment, config.train.steps_of_epoch(plan.steps_per_epoch))
    pipeline = TrainingPipeline(index, source, config.data, start=(config.train.epochs, 0))
    batches = [next(pipeline) for _ in range(count)]
    model, _ = build_model(config, plan.training_set.identities)
    along = []
    for path in checkpoints:
        load_weights(model, path)
        step = int(path.name.rpartition("-")[2])
        along.append({"step": step, "terms": shares(measure(model, batches, config), config.loss.weights)})
    return {"run": run.name, "settings": list(settings), "set": index.name, "seed": config.seed, "along": along}


def load_weights(model: TacafNet, path: Path) -> None:
    """Load a checkpoint's weights into the model.

    Raises InputError if the checkpoint is not trusted or belongs to another model.
    """
    refuse_strange(path)
    try:
        with data_only():
            state = torch.load(path / MODEL_FILE, map_location="cpu", weights_only=True)["module"]
    except (OSError, KeyError, pickle.UnpicklingError, RuntimeError):
        raise InputError(f"{shown(path / MODEL_FILE)} cannot be read as the weights of a checkpoint") from None
    wanted, found = ({(name, tensor.shape) for name, tensor in one.items()} for one in (model.state_dict(), state))
    if wanted != found:
        name, _ = min(wanted ^ found)
        raise InputError(
            f"{shown(path)} holds another model, which differs in {name}; give the set of its training, and no --set"
            " that adds parameters"
        )
    model.load_state_dict(state)


def shares(found: dict[str, dict[str, float]], weights: dict[str, float]) -> dict[str, dict[str, float]]:
    """Term -> its weighted norm, its share (a multiple of the identity loss's norm), its cosine with that loss."""
    identity = max(found["identity"]["norm"], 1e-12)
    return {
        name: {
            "norm": weights.get(name, 1.0) * one["norm"],
            "share": weights.get(name, 1.0) * one["norm"] / identity,
            "cosine": one["cosine_with_identity"],
        }
        for name, one in found.items()
    }


def show(found: dict[str, Any]) -> str:
    """A line for each checkpoint and term."""
    lines = [f"{found['run']}\n{'step':>6} {'term':14} {'norm':>10} {'of identity':>12} {'cosine':>7}"]
    for one in found["along"]:
        for name, values in one["terms"].items():
            lines.append(
                f"{one['step']:6} {name:14} {values['norm']:10.3f} {values['share']:12.2f} {values['cosine']:7.2f}"
            )
    return "\n".join(lines)


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=to_path, nargs="+", required=True, help="runs of launch/train.py")
    parser.add_argument("--shards", type=to_path, required=True, help="the set they were trained on")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="only for the measurement")
    parser.add_argument("--batches", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--json", type=to_path)
    args = parser.parse_args(argv)
    if args.batches < 1:
        raise InputError(f"expected at least 1 in --batches, got {args.batches}; raise it")
    found = [measure_along(run, args.shards.resolve(), args.set, args.batches) for run in args.run]
    if args.json:
        write_json(args.json, {"environment": environment(1), "batches": args.batches, "runs": found})
    print("\n".join(map(show, found)))
    return 0
