"""The style of all figures, and inline SVG in the colours of its page, light or dark.

The SVG has no colours of its own for text and lines: it uses `currentColor` and the page's `--line`.
"""

import io
from collections.abc import Callable
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_INK, _LINE = "#0a0b0c", "#0d0e0f"  # placeholders for the page's colours until the SVG is written
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "tacaf",  # the same run gives the same bytes
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    # Of medium lightness, visible on white and on black.
    "axes.prop_cycle": cycler(color=["#3b82d0", "#d9692e", "#2fa36b", "#a565c0", "#b58a00", "#d6557a", "#7d8a94"]),
}
_PAGE = STYLE | {
    "grid.color": _LINE,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
}


def figure(
    draw: Callable[[Axes], None],
    across: str,
    up: str,
    bottom: float | None = None,
    height: float = 3.2,
    beside: int = 4,
) -> str:
    """A figure as SVG for a page. `draw` gets its axes; `across` and `up` are their labels.

    `height` is in inches; `beside` is the number of labels in a row of the legend.
    """
    with matplotlib.rc_context(_PAGE):
        made = Figure(figsize=(5.6, height), layout="constrained")
        axes = made.add_subplot()
        draw(axes)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        if bottom is not None:
            axes.set_ylim(bottom=bottom)
        made.legend(loc="outside upper center", frameon=False, fontsize=8, ncols=beside)
        text = io.StringIO()
        made.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    return svg.replace(_INK, "currentColor").replace(_LINE, "var(--line)")
