"""The picture of an ablation: every row's rank-1 and mAP by seed, and its differences with their intervals."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tacaf.report.plots import STYLE

NAMES = (("rank1", "rank-1", "#2563a8"), ("mAP", "mAP", "#d1622b"))


def draw_forest(table: Mapping[str, Any]) -> str:
    """The `ablation_table.record` as SVG: scores in per cent on the left, differences in points on the right."""
    rows = list(table["rows"])[::-1]
    compared = [(row, key) for row in rows for key in row["against"]]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 1.2 + 0.34 * max(len(rows), len(compared), 3)), layout="constrained")
        left, right = figure.subplots(1, 2)
        _values(left, rows)
        _differences(right, compared, {row["row"]: row["text"] for row in rows})
        figure.suptitle(table["title"] + ("" if table["complete"] else " (not complete)"))
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None}, facecolor="white")
    return text.getvalue()[text.getvalue().index("<svg") :]


def _values(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    for offset, (name, label, colour) in zip((0.13, -0.13), NAMES, strict=True):
        for place, row in enumerate(rows):
            values = [100 * means[name] for means in row["seeds"].values()]
            axes.plot(values, np.full(len(values), place + offset), "o", markersize=3, color=colour, alpha=0.5)
            if values:
                axes.plot(np.mean(values), place + offset, "|", markersize=11, color=colour, label=label)
    _name(axes, [row["text"] for row in rows])
    axes.set_xlabel("per cent; a dot is a seed, a bar their mean")


def _differences(axes: Axes, compared: Sequence[tuple[dict[str, Any], str]], texts: Mapping[str, str]) -> None:
    for offset, (name, label, colour) in zip((0.13, -0.13), NAMES, strict=True):
        for place, (row, key) in enumerate(compared):
            difference = row["against"][key][name]
            mean, low, high = (100 * difference[part] for part in ("mean", "low", "high"))
            face = colour if difference["seeds"] > 2 else "white"
            axes.errorbar(
                mean,
                place + offset,
                xerr=[[mean - low], [high - mean]],
                fmt="o",
                markersize=4,
                color=colour,
                markerfacecolor=face,
                label=label,
            )
    axes.axvline(0, color="#5b6770", linewidth=1)
    _name(axes, [f"{row['text']}\nagainst {texts[key]}" for row, key in compared])
    axes.set_xlabel("difference in points, 95 % interval;\nhollow: one seed or two, too few to count")


def _name(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_ylim(-0.6, len(names) - 0.4)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if handles:
        axes.legend(
            handles.values(),
            handles.keys(),
            frameon=False,
            fontsize=8,
            loc="lower right",
            bbox_to_anchor=(1, 1),
            ncols=len(handles),
        )
