"""Run logging: metrics.jsonl, run.log, DeepSpeed's monitors, the progress line, and reports of non-finite losses."""

import math
import resource
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tacaf import distributed
from tacaf.evaluation.ranking import HEADLINE
from tacaf.evaluation.results import Result
from tacaf.files import write_json
from tacaf.progress import Progress
from tacaf.run_files import (
    METRICS_FILE,
    EvaluationRecord,
    MetricsWriter,
    NonFiniteStep,
    StepRecord,
    WarningRecord,
)
from tacaf.train import log_file
from tacaf.train.processes import Place
from tacaf.train.state import TrainState
from tacaf.train.step_figures import LaunchedStep, StepFigures
from tacaf.train.train_config import TrainConfig
from tacaf.transfer import Moment
from tacaf.vocabulary import InputError

MIB = 2**20


class Extent(NamedTuple):
    """The size of a run, from which progress and speed are computed."""

    steps: int  # of the whole run
    images: int  # of a global batch
    share_at_one_second: float | None  # of the GPUs' peak matrix rate, at one second per step; see flops.py


class RunLog:
    """Logs a run's steps, scores and warnings. Ranks other than the first only log warnings."""

    def __init__(
        self, config: TrainConfig, folder: Path, place: Place, extent: Extent, *, done: int, monitor: Any
    ) -> None:
        """`done`: the number of steps before this start. `monitor`: DeepSpeed's monitor, which may be disabled."""
        first = place.rank == 0
        self.config, self.folder, self.place, self.extent, self.monitor = config, folder, place, extent, monitor
        self.metrics = MetricsWriter(folder / METRICS_FILE if first else None, done)
        self.progress = Progress(extent.steps, done, active=first)
        self.before = Moment(place.device)  # where the next step's time starts
        if self.metrics.said is not None:
            self.warn(self.metrics.said)

    def gather(self, own: dict[str, float], step: LaunchedStep) -> StepFigures:
        """Gather every rank's figures of the next step; `own` are "loss" and every term. A collective call.

        A step's time on the device begins where the step before it ended there. What the host spends on a step begins
        where it had launched the step before, so the wait for the step's batch is a part of it.
        """
        before, self.before = self.before, step.values.moment
        wait_share = step.wait_s / (self.before.launched_s - before.launched_s)
        rows = distributed.numbers_of_ranks([*own.values(), wait_share, peak_memory_mib(self.place.device)])
        return StepFigures(
            ranks=[dict(zip(own, row, strict=False)) for row in rows],
            step_s=self.before.since(before),
            wait_share=max(row[-2] for row in rows),
            peak_memory_mib=max(row[-1] for row in rows),
        )

    def step(self, step: LaunchedStep, figures: StepFigures, norm: float | None) -> None:
        """Log a finished step. `norm`: the gradient's norm, if it updated."""
        step_s = figures.step_s
        number = step.number + 1
        mean = figures.mean
        loss = mean.pop("loss")
        speed = {
            "images_per_s": round(self.extent.images / step_s, 1),
            "data_wait_share": round(figures.wait_share, 4),
            "step_ms": round(1000 * step_s, 1),
            "peak_memory_mib": round(figures.peak_memory_mib, 1),
        }
        if self.extent.share_at_one_second is not None:
            speed["matrix_rate_share"] = round(self.extent.share_at_one_second / step_s, 4)
        if number % self.config.log_every == 0:
            record = StepRecord(
                kind="step",
                epoch=step.epoch,
                step=step.step,
                global_step=number,
                loss=_plain(loss),
                terms={name: _plain(value) for name, value in mean.items()},
                gradient_norm=_plain(norm),
                lr=step.rates,
                **speed,
            )
            self.metrics.write(record)
            lr = {f"lr {name}": rate for name, rate in step.rates.items()}
            self._write_events(number, {"loss": loss, **mean, "gradient_norm": norm, **speed, **lr})
        self.progress.step(
            f"epoch {step.epoch} | loss {loss:.3f} | {speed['images_per_s']:.0f} images/s | waits"
            f" {100 * speed['data_wait_share']:.1f} %"
        )

    def evaluated(self, state: TrainState, split: str, result: Result) -> None:
        """Log the scores of an epoch. The next step's time starts here."""
        mean = result.mean
        figures = {name: mean[name] for name in HEADLINE}
        self.metrics.write(
            EvaluationRecord(kind="eval", epoch=state.epoch, global_step=state.global_step, split=split, **figures)
        )
        self._write_events(state.global_step, {f"{split} {name}": value for name, value in figures.items()})
        self.say(
            f"epoch {state.epoch} | {split} identities | rank-1 {100 * mean.rank1:.1f} % | mAP {100 * mean.mAP:.1f} %"
        )
        self.next_step()

    def next_step(self) -> None:
        """The next step's time starts here, after everything before it has been read."""
        self.before = Moment(self.place.device)

    def nonfinite(
        self, figures: StepFigures, norm: float | None, step: LaunchedStep, keys: list[str], skipped: int
    ) -> None:
        """Report a step with a non-finite loss or gradient, which updated nothing: raise InputError or warn.

        Every affected rank writes the names of its samples, `keys`, to a file, so that the step can be reproduced.
        `skipped`: the number of skipped steps before this one.
        """
        bad = [rank for rank, losses in enumerate(figures.ranks) if not all(map(math.isfinite, losses.values()))]
        ranks = bad or list(range(len(figures.ranks)))
        if self.place.rank in ranks:
            self._write_samples(figures, norm, step, keys)
        got = (
            f"losses {figures.ranks[ranks[0]]} on rank {ranks[0]}" if bad else f"finite losses and a gradient of {norm}"
        )
        where = f"epoch {step.epoch}, step {step.step}"
        files = self._samples_of(step, "*")
        skips = self.config.on_nonfinite == "skip"
        if skips and skipped < self.config.nonfinite_limit:
            self.warn_once(f"step {step.number} skipped: {got} at {where}; the samples are in {files}")
            return
        more = f"; the limit of {skipped} skipped steps is reached" if skips else ""
        raise InputError(
            f"expected a finite loss and gradient, got {got} at {where}{more}; the samples are in {files}; lower the"
            " learning rate or the loss weights and resume from the last checkpoint",
            shared=True,
        )

    def _write_samples(self, figures: StepFigures, norm: float | None, step: LaunchedStep, keys: list[str]) -> None:
        terms = {name: _plain(value) for name, value in figures.ranks[self.place.rank].items()}
        facts = NonFiniteStep(epoch=step.epoch, step=step.step, terms=terms, gradient_norm=_plain(norm), samples=keys)
        write_json(self._samples_of(step, self.place.rank), facts.model_dump())

    def _samples_of(self, step: LaunchedStep, rank: int | str) -> Path:
        return self.folder / f"nonfinite-step-{step.number}-rank-{rank}.json"

    def say(self, text: str) -> None:
        """Print and log a line, only on the first rank."""
        if self.place.rank == 0:
            log_file.LOGGER.info("%s", text)
        self.progress.say(text)

    def warn(self, text: str) -> None:
        """Print and log a warning on this rank; the first rank also writes it into the metrics."""
        log_file.warn(text)
        self.metrics.write(WarningRecord(kind="warning", global_step=self.progress.done, text=text))

    def warn_once(self, text: str) -> None:
        """Warn about something that concerns all ranks, only on the first rank."""
        if self.place.rank == 0:
            self.warn(text)

    def close(self) -> None:
        self.progress.close()

    def _write_events(self, number: int, figures: dict[str, float | None]) -> None:
        """Send the run's figures after `number` steps to the monitors."""
        if self.monitor.enabled:
            events = [(f"tacaf/{name}", value, number) for name, value in figures.items() if value is not None]
            self.monitor.write_events(events)


def peak_memory_mib(device: torch.device) -> float:
    """The peak memory of this process in MiB: resident on a CPU, allocated by PyTorch on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB


def _plain(value: float | None) -> float | None:
    """A value for JSON, which has no NaN: rounded to six decimals, or None if it is not finite."""
    return None if value is None or not math.isfinite(value) else round(value, 6)
