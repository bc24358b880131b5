"""The configuration of a run: YAML with `base:`, `--set a.b=c` on top, checked by pydantic before anything starts."""

import importlib.util
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from tacaf.data.config import DataConfig
from tacaf.evaluation.config import EvaluationConfig
from tacaf.files import shown
from tacaf.losses.total import LossConfig
from tacaf.model.tacafnet import ModelConfig
from tacaf.optim import OptimConfig
from tacaf.settings import Settings, UserPath
from tacaf.train.config_errors import explain
from tacaf.train.config_file import dotted, read_values
from tacaf.vocabulary import InputError

MOST_EPOCHS, MOST_STEPS, MOST_SECONDS = 10**6, 10**9, 1e8


class TrainConfig(Settings):
    """How long, how precise, and what is kept."""

    epochs: int = Field(100, ge=1, le=MOST_EPOCHS, description="Epochs of the whole run.")
    steps_per_epoch: int | None = Field(
        None, ge=1, le=MOST_STEPS, description="Cut every epoch to this many steps; null: the plan's own number."
    )
    precision: Literal["fp32", "bf16"] = Field(
        "bf16", description="bf16: autocast with fp32 parameters, norms, pooling, distances and losses."
    )
    channels_last: bool = Field(True, description="Keep maps channels-last in memory.")
    accumulate: int = Field(
        1,
        ge=1,
        le=MOST_STEPS,
        description=(
            "Batches per update: the mean of so many consecutive batches' gradients. A step is still one batch of the"
            " plan, in epochs, rates, metrics and checkpoints; checkpoints are made after whole updates only."
        ),
    )
    compile: bool = Field(
        False, description="torch.compile the model's training pass; a minute or more at every start. Not with ZeRO-3."
    )
    cuda_graph: bool = Field(
        False,
        description=(
            "On a GPU: capture forward, losses and backward of a step once in a CUDA graph and replay it, because the"
            " host may need longer to launch a step's kernels than the GPU to run them. For one rank and ZeRO stage 0."
            " If a step cannot be captured, the run warns, says why, and continues without the graph."
        ),
    )
    deterministic: bool = Field(
        False,
        description=(
            "On a GPU: take cuDNN's reproducible convolutions, not those that are fastest for the sizes of this run."
        ),
    )
    weights: UserPath | None = Field(None, description="ImageNet ResNet-50 file (.pth or .safetensors) to start from.")
    start_from: UserPath | None = Field(
        None, description="model.safetensors of a trained TACAFNet to start from; classifiers are new."
    )
    save_every: int = Field(
        1, ge=1, le=MOST_EPOCHS, description="Epochs between checkpoints; the last epoch is always saved."
    )
    save_every_steps: int | None = Field(
        None, ge=1, le=MOST_STEPS, description="Also save after every so many steps of the run."
    )
    keep: int = Field(2, ge=1, le=MOST_STEPS, description="How many of the newest checkpoints stay.")
    choose: Literal["last", "validation"] = Field(
        "last",
        description=(
            "The model that is kept and scored: the last epoch's, or the best on validation identities (needs"
            " data.split: train)."
        ),
    )
    best_by: Literal["mAP", "rank1", "mINP"] = Field(
        "mAP", description="What the best epoch on validation identities is best in; its checkpoint is kept as well."
    )
    log_every: int = Field(1, ge=1, le=MOST_STEPS, description="Steps between lines in metrics.jsonl.")
    watch: tuple[Literal["csv_monitor", "tensorboard", "wandb"], ...] = Field(
        (),
        description=(
            "DeepSpeed's monitors to write to as well, in <run>/watch; more settings in deepspeed.<name>. tensorboard"
            " and wandb need their packages."
        ),
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="A loss or gradient that is no finite number: stop all ranks, or leave that step out."
    )
    nonfinite_limit: int = Field(
        10, ge=1, le=MOST_STEPS, description="With skip: how many steps of the run may be left out."
    )
    start_limit_s: float = Field(600, gt=0, le=MOST_SECONDS, description="Seconds the ranks have to find each other.")
    stall_limit_s: float = Field(
        1800,
        gt=0,
        le=MOST_SECONDS,
        description="Seconds without a step forward after which a rank ends the run and names who hangs.",
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
                    f" with a whole update, got {steps}; take {-(-steps // self.accumulate) * self.accumulate}"
                )
        if self.accumulate > 1 and self.on_nonfinite == "skip":
            raise ValueError(
                f"on_nonfinite: expected stop with accumulate = {self.accumulate}, since no step can be left out of an"
                " update, got skip; change one of them"
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
        """Whether no gradient waits before this step of an epoch."""
        return step % self.accumulate == 0

    def ends_update(self, step: int) -> bool:
        """Whether an update stands at the end of this step of an epoch."""
        return (step + 1) % self.accumulate == 0

    @model_validator(mode="after")
    def _can_watch(self) -> "TrainConfig":
        for name in self.watch:
            if name != "csv_monitor" and importlib.util.find_spec(name) is None:
                raise ValueError(
                    f"watch: expected the package {name} for the monitor {name!r}, found none; pip install {name}, or"
                    " take it out"
                )
        return self


class Config(Settings):
    """One run, whole."""

    run: UserPath = Field(..., description="Folder the run writes.")
    seed: int = Field(
        0, ge=0, lt=2**32, description="The seed every draw is a function of, and of the initial weights."
    )
    data: DataConfig
    model: ModelConfig = Field(default_factory=ModelConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    deepspeed: dict[str, Any] = Field(
        default_factory=lambda: {"zero_optimization": {"stage": 1}}, description="DeepSpeed's own JSON, passed through."
    )

    @field_validator("deepspeed")
    @classmethod
    def _passes_through(cls, values: dict[str, Any]) -> dict[str, Any]:
        """What this program reads or sets of DeepSpeed's settings; DeepSpeed checks the others (`check_settings`)."""
        for key in _OURS:
            if key in values:
                raise ValueError(
                    f"{key}: expected to be left out, because TACAF sets it from data.plan, optim and train; got"
                    f" {values[key]!r}; take it out and set it there (bf16.enabled would also break BatchNorm)"
                )
        for key in _SECTIONS:
            if key in values and not isinstance(values[key], dict):
                raise ValueError(f"{key}: expected a mapping, got {values[key]!r}; see DeepSpeed's documentation")
        stage = values.get("zero_optimization", {}).get("stage", 0)
        if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_optimization.stage: expected 0, 1, 2 or 3, got {stage!r}; 1 is the usual one")
        return values

    def effective(self) -> dict[str, Any]:
        """Dotted name to plain value of every setting that says something, so that two runs can be compared by name.

        What belongs to a module that is switched off is left out, but for the switch.
        """
        whole = dict(dotted(self.model_dump(mode="json")))
        idle = tuple(start for switch, starts in _IDLE.items() if not whole[switch] for start in starts)
        return {name: value for name, value in whole.items() if name in _NEVER_IDLE or not name.startswith(idle)}

    @property
    def zero_stage(self) -> int:
        return self.deepspeed.get("zero_optimization", {}).get("stage", 0)

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        try:
            self.model.check_input(self.data.augment.height, self.data.augment.width)
        except InputError as error:
            raise ValueError(str(error)) from None
        if self.train.choose == "validation" and self.data.split != "train":
            raise ValueError(
                "train.choose: expected data.split 'train' with choose 'validation', since other splits hold no"
                f" identities out, got {self.data.split!r}; set data.split: train or train.choose: last"
            )
        if self.evaluation.split == "val" and self.data.split != "train":
            raise ValueError(
                "evaluation.split: expected data.split 'train' with split 'val', since other splits train on the"
                f" validation identities, got {self.data.split!r}; set data.split: train or evaluation.split: test"
            )
        if self.train.compile and self.zero_stage == 3:
            raise ValueError(
                "train.compile: expected ZeRO stage 0, 1 or 2 with it, since stage 3 fetches parameters module by"
                " module, got stage 3; set train.compile: false or deepspeed.zero_optimization.stage: 1"
            )
        return self

    @model_validator(mode="after")
    def _can_be_captured(self) -> "Config":
        """No setting that is known not to work in a CUDA graph; `graphed.obstacle` has what only the run knows."""
        if not self.train.cuda_graph:
            return self
        stage, recompute = self.zero_stage, self.model.cmaam.enabled and self.model.cmaam.recompute
        refused = (
            (stage, "deepspeed.zero_optimization.stage", 0, "ZeRO works on gradients from the host during backward"),
            (
                self.train.accumulate > 1 and self.train.accumulate,
                "train.accumulate",
                1,
                "a replay writes gradients and adds none",
            ),
            (self.train.compile, "train.compile", False, "compiled code was never tried in a graph of the whole step"),
            (recompute, "model.cmaam.recompute", False, "a second pass in backward was never tried in a graph"),
        )
        for got, name, expected, why in refused:
            if got:
                raise ValueError(
                    f"train.cuda_graph: expected {name} {str(expected).lower()} with it, since {why}, got"
                    f" {str(got).lower()}; set {name}: {str(expected).lower()} or train.cuda_graph: false"
                )
        return self


# Keys that say nothing where a module is off, by the key that switches it on. IPCAM's pairs go by cmaam.direction.
_IDLE = {
    "model.cmaam.enabled": ("model.cmaam.", "loss.ic", "loss.dt", "loss.dense_margin"),
    "model.ipcam.enabled": ("model.ipcam.", "loss.part", "loss.pair"),
}
# Of DeepSpeed's settings: those that are not to be given, and those that are mappings to us.
_OURS = (
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
    *("optimizer", "scheduler", "bf16", "fp16", "torch_autocast"),
)
_SECTIONS = ("zero_optimization", "checkpoint", "csv_monitor", "tensorboard", "wandb")
_NEVER_IDLE = (*_IDLE, "model.cmaam.direction")


def load_config(path: Path, overrides: list[str]) -> Config:
    """The checked configuration of a YAML file with its bases and the --set overrides applied, in that order."""
    values = read_values(path, overrides)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{shown(path)}: {explain(error, Config, values)}") from None


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML: `load_config` of it gives the same run."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
