"""Writes a kernel benchmark's result as a Markdown table and a picture beside the result file.

    python perf/plot.py perf/results/kernels_cpu.json      # kernels_cpu.md, kernels_cpu.svg

There is one panel for each pass, with the time as a multiple of eager's (lower is faster) and a mark for the least time
that the measured ceilings allow. It reads only the file, so results from other machines can be drawn, too.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("perf.plot")

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tacaf.command import Parser, entry, to_path
from tacaf.documents import MOST_BYTES, load_json
from tacaf.files import read_bytes, shown, write_whole
from tacaf.vocabulary import InputError

PASSES = ("forward", "backward", "both")
COLOURS = {"eager": "#9aa4ad", "compiled": "#b58a00", "sdpa": "#8b4fa3", "triton": "#2563a8", "cpu path": "#2563a8"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tacaf",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}


def read(path: Path) -> dict[str, Any]:
    """Read the result file. Raises InputError if it is not one of perf/bench_kernels.py."""
    found = load_json(read_bytes(path, MOST_BYTES), shown(path), MOST_BYTES)
    if not isinstance(found, dict) or not any("p50_ms" in row for row in found.get("rows") or ()):
        raise InputError(
            f"expected a result of perf/bench_kernels.py with rows, got {path}; make one with --json {path}"
        )
    return found


def shape_of(row: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in row["shape"].items())


def circumstances(found: dict[str, Any]) -> list[str]:
    """Lines with the machine, versions, commit, time and ceilings."""
    facts, ceiling = found["environment"], found["ceilings"]
    device = (
        ", ".join(facts["gpus"]) if found["device"] == "cuda" else f"{facts['cpu']}, {facts['torch_threads']} threads"
    )
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in ("python", "torch", "triton"))
    lines = [
        f"Measured on: {device}. {versions}. Commit {facts['commit']}, {facts['started']}.",
        f"Ceilings of the same run: copy {ceiling['copy_bytes_per_s'] / 1e9:.1f} GB/s, matrix product "
        f"{ceiling['matrix_flops_per_s'] / 1e12:.3g} TFLOP/s. Command: `{facts['command']}`.",
    ]
    if found.get("rehearsal"):
        lines.append("**A rehearsal without a GPU**: the times and memory below mean nothing.")
    return lines if found["complete"] else [*lines, "**Not complete**: the run was stopped before its last case."]


def table(found: dict[str, Any]) -> str:
    """A table with every row of the file."""
    lines = [
        "# Kernels",
        "",
        *circumstances(found),
        "",
        "Times in ms (p20 / p50 / p80 of single calls); to eager: how "
        "many times as fast; memory in MiB; -: not measured.",
        "",
    ]
    head = (
        "op",
        "shape",
        "dtype",
        "provider",
        "pass",
        "p20 / p50 / p80",
        "graph",
        "to eager",
        "peak",
        "saved",
        "MiB counted",
        "GFLOP counted",
        "of ceiling",
    )
    lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in measured(found):
        cells = (
            row["op"],
            shape_of(row),
            row["dtype"],
            row["provider"],
            row["pass"],
            f"{row['p20_ms']:.3f} / {row['p50_ms']:.3f} / {row['p80_ms']:.3f}",
            _or_dash(row["graph_ms"], ".3f"),
            _or_dash(row["ratio_to_eager"], ".2f"),
            _or_dash(row["peak_mib"], ".0f"),
            f"{row['saved_mib']:.1f}",
            f"{row['bytes'] / 2**20:.1f}",
            f"{row['flops'] / 1e9:.1f}",
            f"{100 * row['share_of_ceiling']:.0f} %",
        )
        lines.append(f"| {' | '.join(cells)} |")
    failed = [row for row in found["rows"] if "error" in row]
    if failed:
        lines += ["", "No figures:", ""]
        lines += [f"- {row['op']} {shape_of(row)} {row['dtype']} {row['provider']}: {row['error']}" for row in failed]
    return "\n".join(lines) + "\n"


def measured(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that have times; the other rows give a reason instead."""
    return [row for row in found["rows"] if "error" not in row]


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def picture(found: dict[str, Any]) -> Figure:
    """A panel for each pass, a group of bars for each op and shape."""
    rows = [row for row in measured(found) if row["ratio_to_eager"] is not None]
    names = list(dict.fromkeys((row["op"], shape_of(row), row["dtype"]) for row in rows))
    providers = list(dict.fromkeys(row["provider"] for row in rows))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 1.2 + 0.17 * len(names) * (len(providers) + 1)), layout="constrained")
        panels = figure.subplots(1, len(PASSES), sharey=True)
        for axes, name in zip(panels, PASSES, strict=True):
            _panel(axes, rows, name, names, providers)
        panels[0].set_yticks(range(len(names)), [f"{op}, {dtype}\n{shape}" for op, shape, dtype in names], fontsize=7)
        panels[0].invert_yaxis()
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", frameon=False, ncols=6)
        figure.supxlabel("time, eager = 1 (shorter is faster)", fontsize=9)
    return figure


def _panel(
    axes: Axes, rows: list[dict[str, Any]], name: str, names: list[tuple[Any, ...]], providers: list[str]
) -> None:
    thick = 0.8 / len(providers)
    own = [row for row in rows if row["pass"] == name]
    for place, provider in enumerate(providers):
        mine = [row for row in own if row["provider"] == provider]
        at = [names.index((row["op"], shape_of(row), row["dtype"])) - 0.4 + thick * (place + 0.5) for row in mine]
        axes.barh(at, [1 / row["ratio_to_eager"] for row in mine], thick, label=provider, color=COLOURS.get(provider))
    best = [row for row in own if row["provider"] == providers[-1]]
    axes.scatter(
        [row["share_of_ceiling"] / row["ratio_to_eager"] for row in best],
        [names.index((row["op"], shape_of(row), row["dtype"])) for row in best],
        marker="|",
        s=90,
        color="#c23b5e",
        label="least the ceilings allow",
    )
    axes.axvline(1, color="#9aa4ad", linewidth=0.8)
    axes.set_title(name, fontsize=10)
    axes.set_xlim(0, min(2.5, 1.05 * max(1 / row["ratio_to_eager"] for row in own)))


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=to_path, metavar="FILE.json")
    path = parser.parse_args(argv).results
    try:
        found = read(path)
    except ValueError as error:
        raise InputError(str(error)) from None
    write_whole(path.with_suffix(".md"), table(found))
    picture(found).savefig(path.with_suffix(".svg"), metadata={"Date": None})
    print(f"{path.with_suffix('.md')}, {path.with_suffix('.svg')}")
    return 0
