"""Figures of features: CMC curves, distances of pairs of images, a map of embeddings."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from tacaf.evaluation.ranking import Ranks
from tacaf.report.embedding_map import EmbeddingMap
from tacaf.report.pair_distances import PairKind
from tacaf.report.plots import figure
from tacaf.vocabulary import Modality

CMC_RANKS = 20
BINS = 60
# Light enough for a dark page and dark enough for a light one; one for each identity of a map.
_PALETTE = (
    "#3b82d0",
    "#d9692e",
    "#2fa36b",
    "#d6404a",
    "#a565c0",
    "#9c6a58",
    "#e07cc0",
    "#7d8a94",
    "#b0a520",
    "#22b1c4",
    "#7fa6e8",
    "#f0a35e",
    "#7cc97a",
    "#f08a86",
    "#c5a3dc",
    "#c29a8c",
    "#b84f93",
    "#5f8290",
    "#94851d",
    "#1d8f9c",
)


def cmc(ranks: Ranks, ranks_shown: int = CMC_RANKS) -> np.ndarray:
    """The share of the queries with a match whose first match is at rank k or better; float64 [ranks_shown]."""
    first_Q = ranks.first_Q[ranks.matches_Q > 0]
    return (first_Q[:, None] <= np.arange(1, ranks_shown + 1)).mean(axis=0)


def draw_cmc(curves: Mapping[str, np.ndarray]) -> str:
    """The figure of CMC curves, from label -> `cmc`."""

    def draw(axes: Axes) -> None:
        for label, shares in curves.items():
            axes.plot(np.arange(1, len(shares) + 1), 100 * shares, label=label)
        axes.set_ylim(0, 101)
        axes.set_xlim(left=1)

    return figure(draw, "rank", "queries, per cent", beside=2)


def draw_distances(samples: Mapping[PairKind, np.ndarray], metric: str) -> str:
    """The densities of the distances of each kind of pair: solid lines for the same identity, dashed for others."""
    known = {kind: values for kind, values in samples.items() if len(values)}
    low, high = min(values.min() for values in known.values()), max(values.max() for values in known.values())
    edges = np.linspace(low, max(high, low + 1e-6), BINS + 1)

    def draw(axes: Axes) -> None:
        for kind, values in known.items():
            density = np.histogram(values, edges)[0] / len(values) / (edges[1] - edges[0])
            colour = "#d9692e" if kind.across else "#3b82d0"
            axes.plot((edges[1:] + edges[:-1]) / 2, density, "-" if kind.same else "--", color=colour, label=str(kind))

    return figure(draw, f"{metric} distance", "density", bottom=0, beside=2)


def draw_map(points: EmbeddingMap) -> str:
    """The figure of a map: identities by colour, modalities by marker, and no scale, which would be meaningless."""

    def draw(axes: Axes) -> None:
        for modality, mark in ((Modality.VISIBLE, "o"), (Modality.INFRARED, "^")):
            for place, pid in enumerate(np.unique(points.pid_N).tolist()):
                xy_N2 = points.xy_N2[(points.pid_N == pid) & (points.modality_N == modality.code)]
                axes.plot(*xy_N2.T, mark, color=_PALETTE[place % len(_PALETTE)], markersize=4, alpha=0.8)
            axes.plot([], [], mark, color="#7d8a94", label=str(modality))
        axes.set_xticks([])
        axes.set_yticks([])

    return figure(draw, f"{points.method}, {len(np.unique(points.pid_N))} identities", "", height=4.2)
