"""The estimate of --dry-run: steps, parameters, operations, memory and disk space of a run, without training."""

import os
from typing import NamedTuple

import torch

from tacaf.data.index import ShardIndex, select_training
from tacaf.data.plan import Plan
from tacaf.losses.total import TacafLoss
from tacaf.model.tacafnet import ModelConfig, TacafNet
from tacaf.train.config import Config, dump_config
from tacaf.train.engine import check_settings
from tacaf.train.finish import check_scoring
from tacaf.train.flops import BF16_RATES, step_flops
from tacaf.train.forward import forward, noise_batch, pairs_of
from tacaf.train.new_model import describe_start
from tacaf.train.ranges import check_ranges
from tacaf.train.shapes import shape_model, shapes_only
from tacaf.train.train_config import TrainConfig
from tacaf.vocabulary import InputError

OPTIMIZER_STATES = {"sgd": 1, "adamw": 2}  # fp32 numbers that an optimiser keeps per parameter
MIB = 2**20


class Estimate(NamedTuple):
    """What a run needs, from counting tensors; nothing is measured."""

    parameters: int
    states: "States"  # of one rank
    saved_mib: float  # what autograd saves for one rank's backward, and the logits of one chunk of identities
    checkpoint_mib: float
    model_mib: float  # without classifiers that are split


class States(NamedTuple):
    """Bytes that one rank keeps per kind of state, all in fp32."""

    weights: float  # including ZeRO's copy of those that the rank updates
    gradients: float
    optimizer: float


def describe(config: Config, ranks: int = 1) -> str:
    """The text of --dry-run. Opens the shard set, so that every combination is checked against it."""
    check_settings(config)
    index = ShardIndex.open(config.data.shards, config.data.remote)
    check_scoring(config, index)
    training_set = select_training(index, config.data.split)
    plan = Plan(training_set, config.data.plan, config.seed)
    plan.check_ranks(ranks)
    check_ranges(config, training_set.identities, ranks)
    steps = config.train.steps_of_epoch(plan.steps_per_epoch)
    cost = estimate(config, plan, ranks)
    at_most = cost.checkpoint_mib * (config.train.keep + 1)
    lines = {
        "training set": training_set.describe(plan.config.images_per_identity),
        "steps": (
            f"{describe_steps(config.train, plan)}; {steps * config.train.epochs} in all, {plan.images} images each"
        ),
        "parameters": f"{cost.parameters:,}",
        "weights": describe_start(config),
        "classifiers": describe_classifiers(config, training_set.identities, ranks),
        "operations": describe_operations(step_flops(config, plan), steps * config.train.epochs),
        "memory a rank": (
            "weights {:,.0f} MiB, gradients {:,.0f} MiB, optimiser {:,.0f} MiB, saved for backward {:,.0f} MiB; counted"
            " from tensors, without the allocator's overhead"
        ).format(*(part / MIB for part in cost.states), cost.saved_mib),
        "disk": (
            f"each checkpoint {cost.checkpoint_mib:,.0f} MiB, all checkpoints at most {at_most:,.0f} MiB, model file"
            f" {cost.model_mib:,.0f} MiB"
        ),
    }
    return dump_config(config) + "\n" + "\n".join(f"{name:14} {text}" for name, text in lines.items())


def describe_operations(flops: float, steps: int) -> str:
    """The operations of a step and of the run, and the run's shortest possible time, at a GPU's full rate."""
    hours = {name: flops * steps / rate / 3600 for name, rate in BF16_RATES.items()}
    bounds = ", ".join(f"{hours[name]:.2g} h on one {name}" for name in ("H200", "A100"))
    return (
        f"{flops / 1e12:.3g} TFLOP a step, {flops * steps / 1e15:,.3g} PFLOP in all; at the full bf16 matrix rate"
        f" {bounds}, a theoretical lower bound"
    )


def describe_classifiers(config: Config, identities: int, ranks: int) -> str:
    """How they are kept, and which of the identities a step uses."""
    kept = f"split by identities (ranks: {ranks})" if config.model.split else "kept as the other parameters"
    classifier = config.model.classifier
    if not classifier.sampled:
        return f"{kept}; every step uses all {identities:,} identities"
    expected = classifier.expected_identities(identities, config.data.plan.identities_per_batch)
    return (
        f"{kept}; a step uses the identities of its batch and {100 * classifier.negatives:g} % of the others, about"
        f" {expected:,.0f} of {identities:,}"
    )


def describe_steps(config: TrainConfig, plan: Plan) -> str:
    """The number of steps of an epoch; with accumulation, also the steps per update and the batches left out."""
    steps, planned = config.steps_of_epoch(plan.steps_per_epoch), plan.steps_per_epoch
    text = f"{steps} steps an epoch"
    if config.accumulate > 1:
        text += f", an update after every {config.accumulate}"
        if config.steps_per_epoch is None and steps < planned:
            text += f" (the last {planned - steps} of the plan's {planned} are left out)"
    return text


def estimate(config: Config, plan: Plan, ranks: int) -> Estimate:
    """Memory and disk of one rank. Saved tensors are counted in a forward of one pair group and scaled.

    Raises InputError if the run needs more memory than this machine has.
    """
    identities = plan.training_set.identities
    numbers = parameters_of(config.model, identities)
    in_ranges = classifier_parameters_of(config.model, identities) if config.model.split else 0
    kept = OPTIMIZER_STATES[config.optim.kind]
    states = states_of(numbers, ranks, config.zero_stage, kept, in_ranges)
    refuse_beyond_memory(sum(states), "weights, gradients and optimiser", ranks)
    groups = config.data.plan.identities_per_batch // config.data.plan.pair_group // ranks
    saved = groups * saved_by_one_group(config, identities)
    refuse_beyond_memory(sum(states) + saved, "weights, gradients, optimiser and tensors saved for backward", ranks)
    master = 1 if config.zero_stage >= 1 else 0  # ZeRO saves its own copy of the weights too
    return Estimate(
        parameters=numbers,
        states=states,
        saved_mib=saved / MIB,
        checkpoint_mib=(numbers * (1 + kept) + (numbers - in_ranges) * master) * 4 / MIB,
        model_mib=(numbers - in_ranges) * 4 / MIB,
    )


def parameters_of(config: ModelConfig, identities: int) -> int:
    """How many parameters such a model has; nothing is allocated."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in TacafNet(config.unsplit(), identities).parameters())


def classifier_parameters_of(config: ModelConfig, identities: int) -> int:
    """How many of these belong to classifiers: those of the head, of the nodes and of the pair stage."""
    return identities * (parameters_of(config, 2) - parameters_of(config, 1))


def states_of(parameters: int, ranks: int, stage: int, optimizer_states: int, in_ranges: int = 0) -> States:
    """One rank's share under a ZeRO stage.

    Stage 1 partitions the optimiser's states, 2 the gradients, 3 the weights. From stage 1 on, DeepSpeed updates a copy
    of the rank's part of the weights. The parameters that ZeRO-3 gathers for use are not counted. Of the parameters,
    `in_ranges` belong to split classifiers, which DeepSpeed does not manage.
    """
    whole = 4.0 * (parameters - in_ranges)
    part = whole / ranks if stage >= 1 else 0.0
    own = 4.0 * in_ranges / ranks
    return States(
        weights=(whole if stage < 3 else part) + part + own,
        gradients=(whole if stage < 2 else part) + own,
        optimizer=optimizer_states * ((part or whole) + own),
    )


def saved_by_one_group(config: Config, identities: int) -> float:
    """Bytes that autograd saves for one pair group's backward, without parameters, counting each storage once.

    Only shapes are propagated; nothing is computed or allocated. Logits in chunks are not saved: those of one chunk
    exist at a time, for all rows and nodes, with their exponentials and their gradient. Split classifiers always work
    this way, with the rows of every rank and correspondingly fewer identities.
    """
    used = config.model.classifier.expected_identities(identities, config.data.plan.identities_per_batch)
    chunk = min(config.model.chunk, round(used))
    pieces = config.model.split or identities > chunk
    small = config.model.unsplit().model_copy(update={"chunk": 2}) if pieces else config.model
    shapes = shapes_only()
    batch = noise_batch(config, 1, shapes)
    pairs = pairs_of(batch, config).changed(shapes.from_tensor)
    kept: dict[int, torch.UntypedStorage] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # keeps it alive, so that no other storage gets its number
        return tensor

    model = shape_model(small, 2 * 2 if pieces else identities, shapes)
    with shapes, torch.autocast("cpu", torch.bfloat16, config.train.precision == "bf16"):
        own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        shaped = batch._replace(label_B=shapes.from_tensor(batch.label_B), pairs=pairs)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            TacafLoss(config.loss)(forward(model, shaped, config), shaped.label_B)
    saved = sum(storage.nbytes() for number, storage in kept.items() if number not in own)
    ipcam = config.model.ipcam
    rows = len(batch.label_B) * (ipcam.classified_nodes if ipcam.enabled else 1)
    return float(saved + (3 * 4 * rows * chunk if pieces else 0))


def refuse_beyond_memory(need: float, what: str, ranks: int) -> None:
    """Raise InputError if a rank's `need` in bytes exceeds the memory of the GPU or its share of this machine's."""
    if torch.cuda.is_available():
        has, where = float(torch.cuda.get_device_properties(0).total_memory), torch.cuda.get_device_name(0)
    else:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
        has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / here
        where = "this machine" if here == 1 else f"each of {here} ranks on this machine"
    if need > has:
        raise InputError(
            f"expected {what} of at most {has / 2**30:,.1f} GiB a rank, which {where} has, got {need / 2**30:,.1f} GiB;"
            " make the model, the images or the batch smaller, or run this on the machine that will train"
        )
