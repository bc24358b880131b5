"""How far a run has come, and what a resumed run must have in common with it."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from tacaf.data.index import ShardIndex
from tacaf.documents import Count, Document
from tacaf.provenance import git_commit, versions
from tacaf.train.config import Config
from tacaf.train.config_file import dotted
from tacaf.train.train_config import TrainConfig

# Settings that a resumed run may change: where files are, how often something is written, and which of several
# implementations computes the same thing.
FREE = {
    "model": ("kernels", "fused_norm"),
    "data": ("shards", "remote", "threads", "prefetch", "workers", "bad_sample_share"),
    "train": (
        "save_every",
        "save_every_steps",
        "keep",
        "log_every",
        "weights",
        "start_from",
        "watch",
        "deterministic",
        "cuda_graph",
        "on_nonfinite",
        "nonfinite_limit",
        "start_limit_s",
        "stall_limit_s",
    ),
}


class TrainState(NamedTuple):
    """The next step, and the best validation so far: everything that is saved beside the engine."""

    epoch: int = 0
    step: int = 0
    global_step: int = 0
    best: float = -1.0  # train.best_by on validation identities
    best_epoch: int = -1
    evaluated: int = 0  # epochs whose evaluation is done
    skipped: int = 0  # steps without an update, because a loss or the gradient was non-finite

    @property
    def awaits_evaluation(self) -> bool:
        """An epoch has ended and its evaluation has not, as after a stop in the middle of an evaluation."""
        return self.step == 0 and self.epoch > self.evaluated

    @property
    def is_best(self) -> bool:
        """Whether the weights are those of the best epoch so far."""
        return self.step == 0 and self.best_epoch == self.epoch

    @classmethod
    def of(cls, facts: dict[str, Any]) -> "TrainState":
        """The state in a checkpoint's facts, which have the form of `SavedFacts`."""
        return cls(**SavedFacts.model_validate(facts).state.model_dump())

    def after_step(self, steps_per_epoch: int) -> "TrainState":
        epoch, step = divmod(self.epoch * steps_per_epoch + self.step + 1, steps_per_epoch)
        return self._replace(epoch=epoch, step=step, global_step=self.global_step + 1)

    def must_save(self, config: TrainConfig) -> bool:
        at_epoch = self.step == 0 and (self.epoch % config.save_every == 0 or self.epoch == config.epochs)
        return (
            at_epoch
            or self.is_best
            or bool(config.save_every_steps and self.global_step % config.save_every_steps == 0)
        )


class SavedState(Document):
    """A `TrainState` as a checkpoint's manifest holds it."""

    epoch: Count
    step: Count
    global_step: Count
    best: float
    best_epoch: Annotated[int, Field(ge=-1, lt=2**53)]
    evaluated: Count
    skipped: Count


class SavedFacts(Document, extra="ignore"):
    """The facts of a checkpoint that a resuming run reads; it compares the others with its own (`must_match`)."""

    ranks: Annotated[int, Field(ge=1, le=10**6)]
    state: SavedState


EPOCHS = "train.epochs"


def extension(saved: dict[str, Any], config: Config) -> str | None:
    """What it means for the learning rate that the run now has more epochs than its checkpoint; None if it has not."""
    before, now = saved.get(EPOCHS), config.train.epochs
    if isinstance(before, bool) or not isinstance(before, int) or now <= before:
        return None
    done = TrainState.of(saved).epoch
    if config.optim.schedule == "one_cycle":
        then = (
            f"the cosine of optim.schedule one_cycle is stretched to the new end, so the learning rate from epoch"
            f" {done} on differs from the first plan's, and the run differs from one that had so many epochs from the"
            " start"
        )
    else:
        then = "with optim.schedule milestones the epochs done so far are the same as those of the longer run"
    return f"train.epochs is {now} instead of {before}; {then}"


def completed(saved: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """A checkpoint's facts, with the defaults of the settings that are newer than it.

    The default of a new setting is what TACAF did before (CONTRIBUTING.md), so a run can be resumed after an update.
    """
    plain = Config.model_validate({"run": config.run, "data": {"shards": config.data.shards}})
    return dict(dotted(plain.model_dump(mode="json"))) | dict(saved)


def must_match(config: Config, index: ShardIndex) -> dict[str, Any]:
    """The flat facts that a checkpoint and the run resuming from it must share, so that a difference can be named."""
    free = tuple(f"{section}.{key}" for section, keys in FREE.items() for key in keys)
    values = {
        name: value
        for name, value in config.effective().items()
        if name != "run" and not name.startswith("evaluation.") and not _below(name, free)
    }
    return {"shard set sha256": index.sha256, **values}


def _below(name: str, keys: tuple[str, ...]) -> bool:
    return any(name == key or name.startswith(f"{key}.") for key in keys)


def circumstances(config: Config, ranks: int) -> dict[str, Any]:
    """What a checkpoint records besides, and may differ when the run resumes: ranks, code, versions."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return {
        "ranks": ranks,
        "config sha256": hashlib.sha256(text.encode()).hexdigest(),
        "commit": git_commit(),
        "versions": versions(),
    }
