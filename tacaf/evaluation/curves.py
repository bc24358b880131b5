"""The curves of a run as inline SVG: loss and its terms, scores, learning rate, speed. Read from metrics.jsonl."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

POINTS = 400  # at most, on one line: more cannot be seen and only make the file large
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "tacaf",  # the same run gives the same bytes
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.prop_cycle": cycler(color=["#2563a8", "#d1622b", "#2f8f5b", "#8b4fa3", "#b58a00", "#c23b5e", "#5b6770"]),
}


def draw_curves(records: Sequence[dict]) -> dict[str, str]:
    """Title to SVG, one figure a subject, from the records of metrics.jsonl; subjects without records are left out."""
    steps = [record for record in records if record["kind"] == "step"]
    scores = [record for record in records if record["kind"] == "eval"]
    figures = {}
    if steps:
        at = np.array([record["global_step"] for record in steps])
        figures["Loss"] = _figure(lambda axes: _loss(axes, at, steps), "step", "loss")
    if scores:
        splits = " and ".join(sorted({str(record["split"]) for record in scores}))
        title = f"Scores while training, {splits} identities"
        figures[title] = _figure(lambda axes: _scores(axes, scores), "step", "per cent", bottom=0)
    if steps:
        figures["Learning rate"] = _figure(lambda axes: _rates(axes, at, steps), "step", "learning rate", bottom=0)
        figures["Speed"] = _figure(lambda axes: _speed(axes, at, steps), "step", "images/s", bottom=0)
    return figures


def _loss(axes: Axes, at: np.ndarray, steps: Sequence[dict]) -> None:
    _line(axes, at, [record["loss"] for record in steps], "total", linewidth=2)
    for term in steps[0]["terms"]:
        _line(axes, at, [record["terms"].get(term, np.nan) for record in steps], term.replace("_", " "))
    axes.set_yscale("log")


def _scores(axes: Axes, scores: Sequence[dict]) -> None:
    for split, marker in zip(sorted({record["split"] for record in scores}), "os^v", strict=False):
        own = [record for record in scores if record["split"] == split]
        at = [record["global_step"] for record in own]
        for name, label in (("rank1", "rank-1"), ("mAP", "mAP"), ("mINP", "mINP")):
            values = [100 * record[name] for record in own]
            axes.plot(at, values, marker=marker, markersize=4, label=f"{label}, {split}")


def _rates(axes: Axes, at: np.ndarray, steps: Sequence[dict]) -> None:
    for name in steps[0]["lr"]:
        _line(axes, at, [record["lr"][name] for record in steps], name)


def _speed(axes: Axes, at: np.ndarray, steps: Sequence[dict]) -> None:
    _line(axes, at, [record["images_per_s"] for record in steps], "images/s")
    share = axes.twinx()
    _line(share, at, [100 * record["data_wait_share"] for record in steps], "data wait (right)", color="#d1622b")
    share.set_ylim(0, 100)
    share.set_ylabel("data wait, per cent of the step")
    share.grid(False)


def _line(axes: Axes, at: np.ndarray, values: Sequence[float], label: str, **style: Any) -> None:
    """A curve of at most POINTS points, each the mean of its neighbours."""
    parts = np.array_split(np.arange(len(at)), min(POINTS, len(at)))
    series = np.asarray(values, dtype=float)
    axes.plot([at[part].mean() for part in parts], [series[part].mean() for part in parts], label=label, **style)


def _figure(draw: Callable[[Axes], None], across: str, up: str, bottom: float | None = None) -> str:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.2), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        if bottom is not None:
            axes.set_ylim(bottom=bottom)
        figure.legend(loc="outside upper center", frameon=False, fontsize=8, ncols=4)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
