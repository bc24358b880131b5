"""Figures of a run's metrics.jsonl: loss and its terms, scores, learning rate, speed."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from tacaf.report.plots import figure
from tacaf.run_files import EvaluationRecord, Record, StepRecord

POINTS = 400  # at most, on one line: more could not be seen and would only make the file large


class _Steps:
    """The values of the logged steps from which curves are drawn, without the rest of the records."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.series: dict[str, list[float]] = {}

    def add(self, record: StepRecord) -> None:
        """Add a step. A series that begins later or misses a step has NaN there."""
        values = {"loss": record.loss, "speed": record.images_per_s, "wait": record.data_wait_share}
        values |= {f"term {name}": value for name, value in record.terms.items()}
        values |= {f"rate {name}": value for name, value in record.lr.items()}
        for name, value in values.items():
            line = self.series.setdefault(name, [])
            line += [np.nan] * (len(self.at) - len(line)) + [np.nan if value is None else value]
        self.at.append(record.global_step)

    def line(self, name: str) -> np.ndarray:
        values = self.series[name]
        return np.array(values + [np.nan] * (len(self.at) - len(values)), dtype=float)

    def lines(self, kind: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(kind): self.line(name) for name in self.series if name.startswith(kind)}


def draw_curves(records: Iterable[Record]) -> dict[str, str]:
    """Title -> SVG of one figure per subject, from the records of metrics.jsonl. Subjects without any are left out."""
    steps, scores = _Steps(), list[EvaluationRecord]()
    for record in records:
        if isinstance(record, StepRecord):
            steps.add(record)
        elif isinstance(record, EvaluationRecord):
            scores.append(record)
    figures = {}
    if steps.at:
        figures["Loss"] = figure(lambda axes: _loss(axes, steps), "step", "loss")
    if scores:
        splits = " and ".join(sorted({record.split for record in scores}))
        title = f"Scores while training, {splits} identities"
        figures[title] = figure(lambda axes: _scores(axes, scores), "step", "per cent", bottom=0)
    if steps.at:
        figures["Learning rate"] = figure(lambda axes: _rates(axes, steps), "step", "learning rate", bottom=0)
        figures["Speed"] = figure(lambda axes: _speed(axes, steps), "step", "images/s", bottom=0)
    return figures


def _loss(axes: Axes, steps: _Steps) -> None:
    _line(axes, steps.at, steps.line("loss"), "total", linewidth=2)
    for name, values in steps.lines("term ").items():
        _line(axes, steps.at, values, name.replace("_", " "))
    axes.set_yscale("log")


def _scores(axes: Axes, scores: Sequence[EvaluationRecord]) -> None:
    for split, marker in zip(sorted({record.split for record in scores}), "os^v", strict=False):
        own = [record for record in scores if record.split == split]
        at = [record.global_step for record in own]
        for name, label in (("rank1", "rank-1"), ("mAP", "mAP"), ("mINP", "mINP")):
            values = [100 * getattr(record, name) for record in own]
            axes.plot(at, values, marker=marker, markersize=4, label=f"{label}, {split}")


def _rates(axes: Axes, steps: _Steps) -> None:
    for name, values in steps.lines("rate ").items():
        _line(axes, steps.at, values, name)


def _speed(axes: Axes, steps: _Steps) -> None:
    _line(axes, steps.at, steps.line("speed"), "images/s")
    share = axes.twinx()
    _line(share, steps.at, 100 * steps.line("wait"), "data wait (right)", color="#d9692e")
    share.set_ylim(0, 100)
    share.set_ylabel("data wait, per cent of the step")
    share.grid(False)


def _line(axes: Axes, at: Sequence[float], values: np.ndarray, label: str, **style: Any) -> None:
    """A curve of at most POINTS points, each the mean of several steps' finite values."""
    places = np.asarray(at, dtype=float)
    points = [
        (places[part].mean(), values[part][known].mean() if (known := np.isfinite(values[part])).any() else np.nan)
        for part in np.array_split(np.arange(len(places)), min(POINTS, len(places)))
    ]
    axes.plot(*zip(*points, strict=True), label=label, **style)
