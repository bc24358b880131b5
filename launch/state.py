"""Where a run stands, what a resumed run must have in common with it, and what it says of each step."""

import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from launch.config import Config, TrainConfig
from launch.engine import Place
from launch.stop import StopRequest
from tacaf import distributed
from tacaf.checkpoint import write_whole
from tacaf.data.index import ShardIndex
from tacaf.interfaces import Batch
from tacaf.logs import MetricsWriter, Progress
from tacaf.vocabulary import InputError

# Settings a resumed run may change: where things lie, how often something is written, what is scored.
FREE = {
    "data": ("shards", "remote", "threads", "prefetch", "workers", "bad_sample_share"),
    "train": ("save_every", "save_every_steps", "keep", "log_every", "weights", "start_from"),
}


class TrainState(NamedTuple):
    """The next step to do, and the best validation so far: all there is to save beside the engine."""

    epoch: int = 0
    step: int = 0
    global_step: int = 0
    best: float = -1.0  # mAP on validation identities
    best_epoch: int = -1
    evaluated: int = 0  # epochs whose evaluation is done

    @property
    def awaits_evaluation(self) -> bool:
        """An epoch has ended and its evaluation has not; so it is after a stop in the middle of one."""
        return self.step == 0 and self.epoch > self.evaluated

    def after_step(self, steps_per_epoch: int) -> "TrainState":
        epoch, step = divmod(self.epoch * steps_per_epoch + self.step + 1, steps_per_epoch)
        return self._replace(epoch=epoch, step=step, global_step=self.global_step + 1)

    def must_save(self, config: TrainConfig) -> bool:
        at_epoch = self.step == 0 and (self.epoch % config.save_every == 0 or self.epoch == config.epochs)
        return at_epoch or bool(config.save_every_steps and self.global_step % config.save_every_steps == 0)


def must_match(config: Config, index: ShardIndex, ranks: int) -> dict:
    """Flat facts that a checkpoint and the run resuming from it must share, so that a difference can be named.

    Under ZeRO each rank saves its own part of the optimiser, so the number of ranks is one of them.
    """
    values = config.model_dump(mode="json", exclude={"run", "evaluation"})
    for section, keys in FREE.items():
        for key in keys:
            del values[section][key]
    parts = config.deepspeed.get("zero_optimization", {}).get("stage", 0) >= 1
    return {
        "shard set sha256": index.sha256,
        **({"number of ranks (ZeRO stage 1 and up)": ranks} if parts else {}),
        **_flat(values, ""),
    }


def _flat(values: dict, prefix: str) -> dict:
    flat: dict = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


class Watcher:
    """Writes metrics.jsonl and the progress line; silent on every rank but the first."""

    def __init__(
        self, config: Config, run: Path, place: Place, state: TrainState, total: int, stop: StopRequest
    ) -> None:
        first = place.rank == 0
        self.stop = stop
        self.config, self.run, self.global_step = config, run, state.global_step
        self.metrics = MetricsWriter(run / "metrics.jsonl" if first else None, state.global_step)
        self.progress = Progress(total, state.global_step, active=first)
        self.began = time.perf_counter()
        self.last_say = 0.0

    def step(
        self,
        batch: Batch,
        loss: torch.Tensor,
        terms: dict[str, torch.Tensor],
        rates: dict[str, float],
        images: int,
        wait_s: float,
    ) -> None:
        """Log one finished step. `images` is the global batch's size; time is the whole step's, evaluation left out."""
        now = time.perf_counter()
        step_s, self.began = now - self.began, now
        self.global_step += 1
        rate, share = images / step_s, wait_s / step_s
        if self.global_step % self.config.train.log_every == 0:
            self.metrics.write(
                kind="step", epoch=batch.epoch, step=batch.step, global_step=self.global_step,
                loss=round(float(loss), 6),
                terms={name: round(float(term), 6) for name, term in terms.items()}, lr=rates,
                images_per_s=round(rate, 1), data_wait_share=round(share, 4), step_ms=round(1000 * step_s, 1),
            )  # fmt: skip
        self.progress.step(
            f"epoch {batch.epoch} | loss {float(loss):.3f} | {rate:.0f} images/s | waits {100 * share:.1f} %"
        )

    def evaluated(self, state: TrainState, split: str, result: dict) -> None:
        """Log the scores of an epoch, and leave the evaluation's time out of the next step's."""
        mean = result["mean"]
        figures = {name: mean[name] for name in ("rank1", "mAP", "mINP")}
        self.metrics.write(kind="eval", epoch=state.epoch, global_step=state.global_step, split=split, **figures)
        self.say(
            f"epoch {state.epoch} | {split} identities | rank-1 {100 * mean['rank1']:.1f} % | mAP"
            f" {100 * mean['mAP']:.1f} %"
        )
        self.began = time.perf_counter()

    def refuse_nonfinite(
        self, loss: torch.Tensor, terms: dict[str, torch.Tensor], batch: Batch, index: ShardIndex, rank: int
    ) -> None:
        """Stop all ranks where one loss is no number, naming the terms; its samples go into a file for a replay."""
        wrong = not torch.isfinite(loss)
        if not distributed.any_rank(wrong):
            return
        where = f"epoch {batch.epoch}, step {batch.step}"
        if not wrong:
            raise InputError(f"expected a finite loss on every rank, got another at {where} on another rank")
        path = self.run / f"nonfinite-step-{self.global_step}-rank-{rank}.json"
        values = {name: float(term) for name, term in terms.items()}
        keys = [index.key(int(row)) for row in batch.row_B]
        write_whole(
            path, json.dumps({"epoch": batch.epoch, "step": batch.step, "terms": values, "samples": keys}, indent=1)
        )
        raise InputError(
            f"expected a finite loss, got {float(loss)} at {where} on rank {rank} ({values}); the samples are in"
            f" {path}; lower the learning rate or the loss weights and resume from the last checkpoint"
        )

    def say(self, text: str) -> None:
        self.progress.say(text)

    def warn(self, text: str) -> None:
        """On every rank, and in the first one's metrics."""
        self.metrics.write(kind="warning", global_step=self.global_step, text=text)
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self.progress.close()
