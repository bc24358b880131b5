"""The draw of the pairs that a model wants, and one training forward; and a batch of noise to count with."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from tacaf.data.plan import PlannedBatch
from tacaf.interfaces import Batch, DrawnPairs, ModelOutput, StepKey
from tacaf.model.pairs import draw_pairs
from tacaf.train.config import Config
from tacaf.vocabulary import Branch


def draw(config: Config, rows: Batch | PlannedBatch, epoch: int, step: int) -> DrawnPairs:
    """The pairs of a batch's rows, as far as the model wants them, on the host.

    With the configuration bound to it, it is what a TrainingPipeline draws by, before the batch is needed.
    """
    label_B, branch_B, group_B, position_B = (
        torch.as_tensor(column) for column in (rows.label_B, rows.branch_B, rows.group_B, rows.position_B)
    )
    drawn = {
        layer: draw_pairs(
            label_B,
            branch_B,
            group_B,
            position_B,
            seed=config.seed,
            epoch=epoch,
            step=step,
            layer=layer,
            direction=config.model.cmaam.direction,
        )
        for layer in config.model.pair_layers
    }
    return DrawnPairs(drawn.get(3), drawn.get(4))


def pairs_of(batch: Batch, config: Config) -> DrawnPairs:
    """The pairs that the model wants: those that came with the batch, or drawn here where none did."""
    if any(pairs is not None for pairs in batch.pairs):
        return batch.pairs
    return draw(config, batch, batch.epoch, batch.step)


def forward(model: torch.nn.Module, batch: Batch, config: Config) -> ModelOutput:
    """Everything the losses need of this batch; `model` is a TacafNet or DeepSpeed's engine around one."""
    images = batch.images_BCHW
    # The maps follow the images' memory format; the parameters stay contiguous, as DeepSpeed wants to flatten them.
    if config.train.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    # A key changes in every step, and torch.compile would compile anew for each.
    key = StepKey(config.seed, batch.epoch, batch.step) if config.model.classifier.sampled else None
    return model(images, batch.label_B, batch.visible, *pairs_of(batch, config), key)


def noise_batch(config: Config, groups: int, shapes: AbstractContextManager[Any] | None = None) -> Batch:
    """A batch of noise with the labels of so many pair groups; its images are made within `shapes`."""
    plan = config.data.plan
    identities = groups * plan.pair_group
    branch_B = torch.tensor([int(branch) for branch in plan.branches]).repeat_interleave(
        identities * plan.images_per_identity
    )
    label_B = torch.arange(identities).repeat_interleave(plan.images_per_identity).repeat(len(plan.branches))
    with shapes or nullcontext():
        images = torch.randn(len(label_B), 3, config.data.augment.height, config.data.augment.width)
    position_B = torch.arange(len(label_B))
    visible = int((branch_B != Branch.INFRARED).sum())
    return Batch(images, label_B, branch_B, label_B // plan.pair_group, position_B, position_B, visible, 0, 0)
