"""Counting the operations of a training step without executing them, and comparing them with a GPU's peak rate."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from tacaf.data.plan import Plan
from tacaf.losses.total import TacafLoss
from tacaf.train.config import Config
from tacaf.train.forward import noise_batch, pairs_of
from tacaf.train.processes import Place
from tacaf.train.shapes import shape_model, shapes_only

# Operations per second of dense bf16 matrix products, from the makers' data sheets.
BF16_RATES = {"H200": 989e12, "H100": 989e12, "A100": 312e12}


def step_flops(config: Config, plan: Plan) -> float:
    """Operations of one global batch, forward and backward. A multiplication with an addition counts as two.

    Counts convolutions and matrix products, which are nearly all; the kernels of `kernels/` are not counted. Only the
    shapes of one pair group are propagated, and the count is scaled.
    """
    shapes = shapes_only()
    identities = config.model.classifier.expected_identities(
        plan.training_set.identities, plan.config.identities_per_batch
    )
    batch = noise_batch(config, 1, shapes)
    pairs = pairs_of(batch, config)
    model = shape_model(config.model.unsplit(), round(identities), shapes)
    with shapes:
        label_B = shapes.from_tensor(batch.label_B)
        shaped = pairs.changed(shapes.from_tensor)
        with FlopCounterMode(display=False) as counter:
            output = model(batch.images_BCHW, label_B, batch.visible, *shaped)
            TacafLoss(config.loss)(output, label_B)[0].backward()
    return float(counter.get_total_flops()) * plan.images / len(batch.label_B)


def share_at_one_second(config: Config, plan: Plan, place: Place) -> float | None:
    """The share of all ranks' peak matrix rate that a step of one second would reach; None if that rate is unknown."""
    if place.device.type != "cuda" or config.train.precision != "bf16":
        return None
    name = torch.cuda.get_device_name(place.device)
    rate = next((rate for part, rate in BF16_RATES.items() if part in name), None)
    return None if rate is None else step_flops(config, plan) / (rate * place.world_size)
