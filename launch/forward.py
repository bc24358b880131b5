"""One training forward: draw the pairs the model wants, and run it; and a batch of noise to count with."""

import torch

from launch.config import Config
from tacaf.interfaces import Batch, ModelOutput, Pairs
from tacaf.model.pairs import draw_pairs
from tacaf.vocabulary import Branch


def pairs_of(batch: Batch, config: Config) -> dict[str, Pairs]:
    """`pairs3` and `pairs4`, as far as the model wants them."""
    return {
        f"pairs{layer}": draw_pairs(
            batch.label_B, batch.branch_B, batch.group_B, batch.position_B, config.seed, batch.epoch, batch.step, layer,
            config.model.cmaam.direction,
        )
        for layer in config.model.pair_layers
    }  # fmt: skip


def forward(model: torch.nn.Module, batch: Batch, config: Config) -> ModelOutput:
    """Everything the losses need of this batch; `model` is a TacafNet or DeepSpeed's engine around one."""
    images = batch.images_BCHW
    # The maps follow the images' memory format; the parameters stay contiguous, as DeepSpeed wants to flatten them.
    if config.train.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return model(images, batch.label_B, batch.visible, **pairs_of(batch, config))


def noise_batch(config: Config, groups: int) -> Batch:
    """A batch of noise with the labels of so many pair groups."""
    plan = config.data.plan
    identities = groups * plan.pair_group
    branch_B = torch.tensor([int(branch) for branch in plan.branches]).repeat_interleave(
        identities * plan.images_per_identity
    )
    label_B = torch.arange(identities).repeat_interleave(plan.images_per_identity).repeat(len(plan.branches))
    images = torch.randn(len(label_B), 3, config.data.augment.height, config.data.augment.width)
    position_B = torch.arange(len(label_B))
    visible = int((branch_B != Branch.INFRARED).sum())
    return Batch(images, label_B, branch_B, label_B // plan.pair_group, position_B, position_B, visible, 0, 0)
