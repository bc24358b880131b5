"""Measures the gradient of each term of the loss on the backbone, and whether the terms agree in direction.

    python perf/checks/loss_gradients.py --run RUN [RUN ...] --shards SHARDS [--batches 8] [--json FILE]

For every run, the same planned batches go through the model before training (with the weights of the run's seed) and
after it, in training mode. For each term, without its weight: the norm of its gradient over the backbone's parameters,
and its cosine with the gradient of the identity loss; means over the batches.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("perf.checks.loss_gradients")

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tacaf.command import Parser, entry, to_path
from tacaf.data.index import ShardIndex, select_training
from tacaf.data.plan import Plan
from tacaf.data.training_pipeline import TrainingPipeline
from tacaf.data.training_source import TrainingSource
from tacaf.files import write_json
from tacaf.interfaces import Batch
from tacaf.losses.total import TacafLoss
from tacaf.model.file import MODEL, load_model
from tacaf.model.tacafnet import TacafNet
from tacaf.provenance import environment
from tacaf.run_files import CONFIG_FILE
from tacaf.train.config import Config, load_config
from tacaf.train.forward import forward
from tacaf.train.leak import refuse_other_set
from tacaf.train.new_model import build_model
from tacaf.vocabulary import InputError


def term_gradients(model: TacafNet, batch: Batch, config: Config) -> dict[str, torch.Tensor]:
    """Term of the loss -> its unweighted gradient over all backbone parameters, flattened. The model is not changed."""
    model = copy.deepcopy(model).train()  # because a forward pass changes the running statistics
    terms = TacafLoss(config.loss).terms(forward(model, batch, config), batch.label_B)
    weights = list(model.backbone_parameters())
    found = {}
    for name, term in terms.items():
        gradients = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
        found[name] = torch.cat(
            [
                (torch.zeros_like(weight) if one is None else one).flatten()
                for weight, one in zip(weights, gradients, strict=True)
            ]
        )
    return found


def measure(model: TacafNet, batches: list[Batch], config: Config) -> dict[str, dict[str, float]]:
    """Term -> norm and cosine with the identity loss, means over the batches."""
    norms: dict[str, list[float]] = {}
    cosines: dict[str, list[float]] = {}
    for batch in batches:
        gradients = term_gradients(model, batch, config)
        for name, gradient in gradients.items():
            norms.setdefault(name, []).append(float(gradient.norm()))
            cosines.setdefault(name, []).append(float(torch.cosine_similarity(gradient, gradients["identity"], dim=0)))
    return {
        name: {"norm": sum(norms[name]) / len(batches), "cosine_with_identity": sum(cosines[name]) / len(batches)}
        for name in norms
    }


def measure_run(run: Path, shards: Path, count: int) -> dict[str, Any]:
    """The measurements before and after the training of a finished run, on the first batches after its last step."""
    if not (run / MODEL).exists():
        raise InputError(f"{run} is not a finished run, because it has no {MODEL}; resume its training")
    config = load_config(run / CONFIG_FILE, [f"data.shards={shards}"])
    index = ShardIndex.open(config.data.shards)
    refuse_other_set(run, load_model(run / MODEL)[1], index)
    plan = Plan(select_training(index, config.data.split), config.data.plan, config.seed)
    steps = config.train.steps_of_epoch(plan.steps_per_epoch)
    pipeline = TrainingPipeline(
        index, TrainingSource(plan, config.data.augment, steps), config.data, start=(config.train.epochs, 0)
    )
    batches = [next(pipeline) for _ in range(count)]
    model, _ = build_model(config, plan.training_set.identities)
    before = measure(model, batches, config)
    model.load_state_dict(load_file(run / MODEL))
    loss = config.loss
    return {
        "run": run.name,
        "weights": {"ic": loss.ic, "dt": loss.dt, "part": loss.part, "pair": loss.pair},
        "seed": config.seed,
        "set": index.name,
        "before": before,
        "after": measure(model, batches, config),
    }


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=to_path, nargs="+", required=True, help="finished runs of launch/train.py")
    parser.add_argument("--shards", type=to_path, required=True, help="the set they were trained on")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--json", type=to_path)
    args = parser.parse_args(argv)
    if args.batches < 1:
        raise InputError(f"expected at least 1 in --batches, got {args.batches}; raise it")
    found = [measure_run(run, args.shards.resolve(), args.batches) for run in args.run]
    if args.json:
        content = {"environment": environment(1), "batches": args.batches, "runs": found}
        write_json(args.json, content)
    for one in found:
        print(f"{one['run']}\n{'term':14} {'norm before':>12} {'after':>8} {'cosine before':>14} {'after':>8}")
        for name, after in one["after"].items():
            before = one["before"][name]
            print(
                f"{name:14} {before['norm']:12.3f} {after['norm']:8.3f}"
                f" {before['cosine_with_identity']:14.2f} {after['cosine_with_identity']:8.2f}"
            )
    return 0
