"""Optimiser and learning-rate schedule: two parameter groups, and a rate that is a pure function of (epoch, step)."""

import math
from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from tacaf.settings import LARGEST, Settings

Epoch = Annotated[int, Field(ge=0, le=10**6)]
Factor = Annotated[float, Field(ge=0, le=LARGEST)]


class OptimConfig(Settings):
    """How parameters are updated (method §6; the defaults are those of AGW and LbA unless noted)."""

    kind: Literal["sgd", "adamw"] = Field(
        "sgd", description="sgd: Nesterov momentum, the field's recipe; adamw: for small models from scratch."
    )
    new_rate: float = Field(
        0.1,
        gt=0,
        le=LARGEST,
        description="Peak learning rate of new modules at M*K = 32; scaled linearly with M*K for sgd.",
    )
    backbone_rate: float = Field(
        0.01, gt=0, le=LARGEST, description="Peak learning rate of the backbone at M*K = 32; scaled like new_rate."
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd.")
    weight_decay: float = Field(5e-4, ge=0, le=1e6, description="Weight decay of every parameter.")
    scale_rate: bool = Field(
        True,
        description=(
            "Scale the rates by M*K / 32 (identities times images per modality, not branches; times train.accumulate)."
        ),
    )
    clip_norm: float = Field(
        0,
        ge=0,
        le=LARGEST,
        description=(
            "Clip the whole gradient to this norm; 0 never clips, as in the public code of AGW and LbA (DeepSpeed's "
            "own default is 1)."
        ),
    )
    fused: bool = Field(
        True,
        description=(
            "Update all parameters in one call of PyTorch's fused optimiser instead of one operation after another."
        ),
    )
    schedule: Literal["milestones", "one_cycle"] = Field(
        "milestones",
        description=(
            "milestones: linear warm-up, then a factor for each range of epochs; one_cycle: changed at every step,"
            " linear increase, then cosine decrease."
        ),
    )
    warmup_epochs: float = Field(
        10.0, ge=0, le=1e6, description="Length of the warm-up in epochs; one_cycle allows fractions."
    )
    milestones: dict[Epoch, Factor] = Field(
        {20: 0.1, 50: 0.01}, description="Epoch (counted from 0) from which the peak rate is multiplied by this factor."
    )

    @model_validator(mode="after")
    def _whole_warmup(self) -> "OptimConfig":
        if self.schedule == "milestones" and self.warmup_epochs != int(self.warmup_epochs):
            raise ValueError(
                f"warmup_epochs: expected whole epochs with schedule 'milestones', got {self.warmup_epochs}; "
                "round it or take schedule 'one_cycle'"
            )
        return self


def build_optimizer(
    config: OptimConfig,
    backbone: Iterable[torch.nn.Parameter],
    new: Iterable[torch.nn.Parameter],
    images_per_update_and_modality: int,
) -> torch.optim.Optimizer:
    """A torch optimiser with the groups "backbone" and "new"; each group has its peak rate as `peak`.

    DeepSpeed uses a torch optimiser as it is, whereas it would compile its own at the start.
    """
    scale = images_per_update_and_modality / 32 if config.scale_rate else 1.0
    groups = [
        {"params": [p for p in parameters if p.requires_grad], "name": name, "lr": rate * scale, "peak": rate * scale}
        for name, parameters, rate in (("backbone", backbone, config.backbone_rate), ("new", new, config.new_rate))
    ]
    if config.kind == "sgd":
        return torch.optim.SGD(
            groups,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            weight_decay=config.weight_decay,
            fused=config.fused,
        )
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=config.fused)


def rate_factor(config: OptimConfig, epoch: int, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The factor on the peak rate for this step. As in AGW: (epoch + 1) / warm-up, then 1, then the milestones."""
    if config.schedule == "milestones":
        if epoch < config.warmup_epochs:
            return (epoch + 1) / config.warmup_epochs
        passed = [factor for start, factor in sorted(config.milestones.items()) if epoch >= start]
        return passed[-1] if passed else 1.0
    now, total = epoch * steps_per_epoch + step, epochs * steps_per_epoch
    warmup = config.warmup_epochs * steps_per_epoch
    if now < warmup:
        return (now + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (now - warmup) / max(1.0, total - warmup)))


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Set every group's rate to `factor` times its peak. Returns {group name: rate} for the log."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["peak"]
    return {group["name"]: group["lr"] for group in optimizer.param_groups}
