"""What a run would do, without doing it: resolved config, steps, parameters, memory and disk."""

import math
from typing import NamedTuple

import torch

from launch.config import Config, dump_config
from launch.finish import check_scoring
from launch.forward import forward
from tacaf.data.index import ShardIndex, select_training
from tacaf.data.plan import Plan
from tacaf.interfaces import Batch
from tacaf.losses.total import TacafLoss
from tacaf.model.tacafnet import TacafNet
from tacaf.vocabulary import Branch

OPTIMIZER_STATES = {"sgd": 1, "adamw": 2}  # fp32 numbers an optimiser keeps per parameter
MIB = 2**20


class Estimate(NamedTuple):
    """By counting tensors, not by measuring."""

    parameters: int
    weights_mib: float  # fp32 parameters and as many gradients
    optimizer_mib: float  # this rank's share under ZeRO
    saved_mib: float  # what autograd keeps for one rank's backward: the bulk of the peak
    checkpoint_mib: float


def describe(config: Config, ranks: int = 1) -> str:
    """The text of --dry-run. Opens the shard set, so that every combination is checked against it."""
    index = ShardIndex.open(config.data.shards, config.data.remote)
    check_scoring(config, index)
    training_set = select_training(index, config.data.split)
    plan = Plan(training_set, config.data.plan, config.seed)
    plan.check_ranks(ranks)
    steps = config.train.steps_per_epoch or plan.steps_per_epoch
    cost = estimate(config, plan, ranks)
    at_most = cost.checkpoint_mib * (config.train.keep + 1)
    lines = {
        "training set": training_set.describe(),
        "steps": f"{steps} an epoch, {steps * config.train.epochs} in all, {plan.images} images each",
        "parameters": f"{cost.parameters:,}",
        "memory a rank": (
            f"weights and gradients {cost.weights_mib:,.0f} MiB, optimiser {cost.optimizer_mib:,.0f} MiB, kept for"
            f" backward {cost.saved_mib:,.0f} MiB; by counting, what the allocator adds comes on top"
        ),
        "disk": (
            f"a checkpoint {cost.checkpoint_mib:,.0f} MiB, checkpoints at most {at_most:,.0f} MiB, model file"
            f" {cost.weights_mib / 2:,.0f} MiB"
        ),
    }
    return dump_config(config) + "\n" + "\n".join(f"{name:14} {text}" for name, text in lines.items())


def estimate(config: Config, plan: Plan, ranks: int) -> Estimate:
    """Memory and disk of one rank. Saved tensors are counted in a forward of one pair group and scaled."""
    model = TacafNet(config.model, plan.training_set.identities)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    share = ranks if config.zero_stage >= 1 else 1
    states = numbers * 4 * OPTIMIZER_STATES[config.optim.kind] / MIB
    groups = config.data.plan.identities_per_batch // config.data.plan.pair_group // ranks
    return Estimate(
        parameters=numbers,
        weights_mib=2 * numbers * 4 / MIB,
        optimizer_mib=states / share,
        saved_mib=groups * _saved_by_one_group(config, model) / MIB,
        checkpoint_mib=numbers * 4 / MIB + states,
    )


def _saved_by_one_group(config: Config, model: TacafNet) -> float:
    """Bytes autograd saves for one pair group's images, parameters not counted: each storage once."""
    kept: dict[int, int] = {}
    own = {parameter.data_ptr() for parameter in model.parameters()}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch = _one_group(config)
    with (
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, config.train.precision == "bf16"),
    ):
        loss, _ = TacafLoss(config.loss)(forward(model, batch, config), batch.label_B)
    assert math.isfinite(float(loss))
    return float(sum(kept.values()))


def _one_group(config: Config) -> Batch:
    """A batch of noise with the labels of one pair group."""
    plan = config.data.plan
    per_branch = plan.pair_group * plan.images_per_identity
    branch_B = torch.tensor([int(branch) for branch in plan.branches]).repeat_interleave(per_branch)
    label_B = torch.arange(plan.pair_group).repeat_interleave(plan.images_per_identity).repeat(len(plan.branches))
    images = torch.randn(len(label_B), 3, config.data.augment.height, config.data.augment.width)
    position_B = torch.arange(len(label_B))
    visible = int((branch_B != Branch.INFRARED).sum())
    return Batch(images, label_B, branch_B, torch.zeros_like(label_B), position_B, position_B, visible, 0, 0)
