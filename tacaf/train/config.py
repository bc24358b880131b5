"""The configuration of a run: its sections, the rules between them, and its text.

A configuration can be read on any machine: the files and packages that it names are checked by the command that needs
them, when it starts.
"""

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from tacaf.data.config import DataConfig
from tacaf.evaluation.config import EvaluationConfig
from tacaf.files import shown
from tacaf.losses.total import LossConfig
from tacaf.model.tacafnet import ModelConfig
from tacaf.optim import OptimConfig
from tacaf.settings import Settings, UserPath
from tacaf.train.config_errors import explain, only_in
from tacaf.train.config_file import dotted, read_values
from tacaf.train.train_config import TrainConfig
from tacaf.vocabulary import InputError


class Config(Settings):
    """A run: the folder that it writes, its seed, and a section for each of its parts."""

    run: UserPath = Field(..., description="The folder that the run writes.")
    seed: int = Field(0, ge=0, lt=2**32, description="The seed of every random draw and of the initial weights.")
    data: DataConfig
    model: ModelConfig = Field(default_factory=ModelConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    deepspeed: dict[str, Any] = Field(
        default_factory=lambda: {"zero_optimization": {"stage": 1}},
        description="DeepSpeed's own settings, which are passed to it.",
    )

    @field_validator("deepspeed")
    @classmethod
    def _passes_through(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Check DeepSpeed's settings that TACAF reads or sets; DeepSpeed checks the others (`check_settings`)."""
        for key in _OURS:
            if key in values:
                raise ValueError(
                    f"{key}: expected no value, because TACAF sets it from data.plan, optim and train, got"
                    f" {values[key]!r}; remove it and use those sections (bf16.enabled would also break BatchNorm)"
                )
        for key in _SECTIONS:
            if key in values and not isinstance(values[key], dict):
                raise ValueError(f"{key}: expected a mapping, got {values[key]!r}; see DeepSpeed's documentation")
        zero = values.get("zero_optimization", {})
        offload = zero.get("offload_optimizer")
        if offload is not None and not isinstance(offload, dict):
            name = "zero_optimization.offload_optimizer"
            raise ValueError(f"{name}: expected a mapping, got {offload!r}; see DeepSpeed's documentation")
        stage = zero.get("stage", 0)
        if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_optimization.stage: expected 0, 1, 2 or 3, got {stage!r}; 1 is the usual one")
        return values

    def effective(self) -> dict[str, Any]:
        """Dotted name -> plain value of every setting that has an effect, so that two runs can be compared by name.

        Settings of a disabled module are left out, except `enabled`.
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
                "train.choose: expected data.split 'train' with choose 'validation', since other splits leave no"
                f" identities for validation, got {self.data.split!r}; set data.split: train or train.choose: last"
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
    def _can_be_split(self) -> "Config":
        """Check that the step can clip by a norm with the classifiers' ranges (`train.update`), and was tested so."""
        if not self.model.split:
            return self
        zero = self.deepspeed.get("zero_optimization", {})
        offload = (zero.get("offload_optimizer") or {}).get("device", "none")
        refused = (
            (
                self.zero_stage == 3 and 3,
                "deepspeed.zero_optimization.stage",
                1,
                "stage 3 clips by its own norm, without the classifiers, and would have little left to divide",
            ),
            (
                offload != "none" and offload,
                "deepspeed.zero_optimization.offload_optimizer.device",
                "none",
                "DeepSpeed then clips by its own norm, without the classifiers",
            ),
            (not self.optim.fused, "optim.fused", True, "other optimisers cannot skip a step on the device"),
            (self.train.compile, "train.compile", False, "compiling the classifiers' sums over ranks is not tested"),
            (self.train.cuda_graph, "train.cuda_graph", False, "sums over ranks in a graph are not tested"),
        )
        for got, name, expected, why in refused:
            if got:
                found = not expected if isinstance(expected, bool) else got
                raise ValueError(
                    f"model.classifier.sharding: expected {name} {str(expected).lower()} with identities, since {why},"
                    f" got {str(found).lower()}; set {name}: {str(expected).lower()} or model.classifier.sharding: none"
                )
        return self

    @model_validator(mode="after")
    def _can_be_captured(self) -> "Config":
        """Refuse settings that do not work in a CUDA graph; `graphed.obstacle` checks what only the run knows."""
        if not self.train.cuda_graph:
            return self
        stage, recompute = self.zero_stage, self.model.cmaam.enabled and self.model.cmaam.recompute
        refused = (
            (stage, "deepspeed.zero_optimization.stage", 0, "ZeRO works on gradients from the host during backward"),
            (
                self.train.accumulate > 1 and self.train.accumulate,
                "train.accumulate",
                1,
                "a replay overwrites gradients instead of adding to them",
            ),
            (self.train.compile, "train.compile", False, "compiled code in a graph of the whole step is not tested"),
            (recompute, "model.cmaam.recompute", False, "recomputing during backward in a graph is not tested"),
        )
        for got, name, expected, why in refused:
            if got:
                raise ValueError(
                    f"train.cuda_graph: expected {name} {str(expected).lower()} with it, since {why}, got"
                    f" {str(got).lower()}; set {name}: {str(expected).lower()} or train.cuda_graph: false"
                )
        return self


# Keys without effect if a module is disabled, by the key that enables it. IPCAM's pairs depend on cmaam.direction too.
_IDLE = {
    "model.cmaam.enabled": ("model.cmaam.", "loss.ic", "loss.dt", "loss.dense_margin", "loss.dense_unit"),
    "model.ipcam.enabled": ("model.ipcam.", "loss.part", "loss.pair"),
}
# DeepSpeed's settings that users may not set, and those that must be mappings.
_OURS = (
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
    *("optimizer", "scheduler", "bf16", "fp16", "torch_autocast"),
)
_SECTIONS = ("zero_optimization", "checkpoint", "csv_monitor", "tensorboard", "wandb")
_NEVER_IDLE = (*_IDLE, "model.cmaam.direction")


def load_config(path: Path, overrides: list[str]) -> Config:
    """The checked configuration of a YAML file, with its bases and the --set overrides.

    Raises InputError if a file cannot be read or a value is wrong.
    """
    values = read_values(path, overrides)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        typed = [override.partition("=")[0] for override in overrides]
        where = "--set" if only_in(error, values, typed) else shown(path)
        raise InputError(f"{where}: {explain(error, Config, values)}") from None


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML, which `load_config` reads back unchanged."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
