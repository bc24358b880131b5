"""The section `train` of a configuration: length, precision, start, checkpoints, logging and limits."""

from typing import Literal

from pydantic import Field, model_validator

from tacaf.settings import Settings, UserPath
from tacaf.vocabulary import InputError

MOST_EPOCHS, MOST_STEPS, MOST_SECONDS = 10**6, 10**9, 1e8


class TrainConfig(Settings):
    """Length, precision, start, checkpoints, logging and limits of a training."""

    epochs: int = Field(100, ge=1, le=MOST_EPOCHS, description="Epochs of the whole run.")
    steps_per_epoch: int | None = Field(
        None, ge=1, le=MOST_STEPS, description="Cut every epoch to this many steps; null: the plan's number."
    )
    precision: Literal["fp32", "bf16"] = Field(
        "bf16", description="bf16: autocast with fp32 parameters, norms, pooling, distances and losses."
    )
    channels_last: bool = Field(True, description="Store feature maps channels-last in memory.")
    accumulate: int = Field(
        1,
        ge=1,
        le=MOST_STEPS,
        description=(
            "Batches per update, whose gradients are averaged. Epochs, rates, metrics and checkpoints still count each"
            " batch as a step; checkpoints are saved only after whole updates."
        ),
    )
    compile: bool = Field(
        False,
        description=(
            "Use torch.compile for the model's training pass, which takes a minute or more at every start. Not with"
            " ZeRO-3."
        ),
    )
    cuda_graph: bool = Field(
        False,
        description=(
            "On a GPU: capture forward, losses and backward of a step once in a CUDA graph and replay it, because the"
            " host may take longer to launch a step's kernels than the GPU to run them. For one rank and ZeRO stage 0."
            " If a step cannot be captured, the run continues without the graph and warns with the reason."
        ),
    )
    deterministic: bool = Field(
        False,
        description=(
            "On a GPU: use cuDNN's reproducible convolutions instead of the fastest ones for the sizes of this run."
        ),
    )
    weights: UserPath | None = Field(
        None, description="ImageNet weights of a ResNet-50 to start from (.pth or .safetensors)."
    )
    start_from: UserPath | None = Field(
        None, description="model.safetensors of a trained TACAFNet to start from; classifiers are initialised anew."
    )
    save_every: int = Field(
        1, ge=1, le=MOST_EPOCHS, description="Epochs between checkpoints; the last epoch is always saved."
    )
    save_every_steps: int | None = Field(
        None,
        ge=1,
        le=MOST_STEPS,
        description="Also save a checkpoint after every N steps of the run; null: only after epochs.",
    )
    keep: int = Field(2, ge=1, le=MOST_STEPS, description="Number of the newest checkpoints that are kept.")
    choose: Literal["last", "validation"] = Field(
        "last",
        description=(
            "The model that is kept and scored: the last epoch's, or the best on validation identities (needs"
            " data.split: train)."
        ),
    )
    best_by: Literal["mAP", "rank1", "mINP"] = Field(
        "mAP",
        description=(
            "The measure that decides which epoch is best on validation identities; its checkpoint is kept as well."
        ),
    )
    log_every: int = Field(1, ge=1, le=MOST_STEPS, description="Steps between lines in metrics.jsonl.")
    watch: tuple[Literal["csv_monitor", "tensorboard", "wandb"], ...] = Field(
        (),
        description=(
            "DeepSpeed's monitors, which write to <run>/watch; more settings are in deepspeed.<name>. tensorboard"
            " and wandb need their packages."
        ),
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop",
        description="What to do at a non-finite loss or gradient. stop: end all ranks; skip: skip that step's update.",
    )
    nonfinite_limit: int = Field(
        10, ge=1, le=MOST_STEPS, description="With skip: the number of steps of the run that may be skipped."
    )
    start_limit_s: float = Field(600, gt=0, le=MOST_SECONDS, description="Seconds within which the ranks must connect.")
    stall_limit_s: float = Field(
        1800,
        gt=0,
        le=MOST_SECONDS,
        description="Seconds without progress after which a rank ends the run and names the rank that hangs.",
    )

    @model_validator(mode="after")
    def _one_start(self) -> "TrainConfig":
        if self.weights and self.start_from:
            raise ValueError("expected weights or start_from, got both; leave one out")
        return self

    @model_validator(mode="after")
    def _whole_updates(self) -> "TrainConfig":
        for name in ("steps_per_epoch", "save_every_steps"):
            steps = getattr(self, name)
            if steps and steps % self.accumulate:
                raise ValueError(
                    f"{name}: expected a multiple of accumulate = {self.accumulate}, since checkpoints and epochs end"
                    f" with a whole update, got {steps}; use {-(-steps // self.accumulate) * self.accumulate}"
                )
        if self.accumulate > 1 and self.on_nonfinite == "skip":
            raise ValueError(
                f"on_nonfinite: expected stop with accumulate = {self.accumulate}, since a step of an update cannot be"
                " skipped alone, got skip; change one of them"
            )
        return self

    def steps_of_epoch(self, planned: int) -> int:
        """`steps_per_epoch`, or all of the `planned` batches that fill whole updates."""
        steps = self.steps_per_epoch or planned // self.accumulate * self.accumulate
        if steps == 0:
            raise InputError(
                f"train.accumulate: expected at most the {planned} batches of an epoch, got {self.accumulate}; lower it"
            )
        return steps

    def begins_update(self, step: int) -> bool:
        """Whether an update begins with this step of an epoch, so that no gradient is pending before it."""
        return step % self.accumulate == 0

    def first_of_update(self, step: int) -> int:
        """The first step of the update that this step of an epoch belongs to."""
        return step - step % self.accumulate

    def ends_update(self, step: int) -> bool:
        """Whether an update is made at the end of this step of an epoch."""
        return (step + 1) % self.accumulate == 0
