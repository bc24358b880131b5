"""The table that a call prints at its end: the figures of each part that has rows, then the state of every part."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perf.calls.rows import rows_of, short

TRAIN_COLUMNS = ("name", "forward_ms", "backward_ms", "optimizer_ms", "step_ms", "images_per_s", "peak_mib", "error")
CHECK_COLUMNS = ("op", "shape", "dtype", "largest_error", "eager_error", "error")
KERNEL_COLUMNS = ("op", "provider", "us", "count", "kernel", "error")
HIDDEN = ("bytes", "flops", "steps_ms", "longest_gaps_us")  # in the file, not in the table
ROWS_SHOWN, KERNELS_SHOWN = 40, 25
LOG_LINES = 40


def text(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """Rows as lines of equal width."""
    cells = [list(columns), *([short(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def kernels(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line per op, shape and pass, a column per provider: its time in a graph, or without one in brackets."""
    providers = list(dict.fromkeys(row["provider"] for row in rows))
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        key = (row["op"], short(row.get("shape")), row.get("pass") or "-")
        line = found.setdefault(key, {"op": key[0], "shape": key[1], "pass": key[2]})
        line[row["provider"]] = _time(row)
    return text(list(found.values()), ["op", "shape", "pass", *providers])


def _time(row: dict[str, Any]) -> str:
    if row.get("error"):
        return "failed"
    if row.get("graph_ms") is not None:
        return f"{row['graph_ms']:.4g}"
    return f"({row['p50_ms']:.4g})" if row.get("p50_ms") is not None else "-"


def tests(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The number of tests that passed, and a line for each that did not."""
    bad = [row for row in rows if row["outcome"] != "passed"]
    passed = f"{len(rows) - len(bad)} tests passed, {len(bad)} did not"
    return [passed, *(f"{row['outcome']}: {row['test']}: {row['why']}" for row in bad[:ROWS_SHOWN])]


def of_rows(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The lines for rows of any kind."""
    if any("kernel" in row and "op" in row for row in rows):
        longest = sorted(rows, key=lambda row: row.get("us") or 0.0, reverse=True)
        cut = [{**row, "kernel": row.get("kernel", "-")[:60]} for row in longest[:KERNELS_SHOWN]]
        return text(cut, KERNEL_COLUMNS)
    if any(row.get("pass") == "check" for row in rows):
        return text(rows, CHECK_COLUMNS)
    if all("provider" in row and "op" in row for row in rows):
        return kernels(rows)
    if all("outcome" in row for row in rows):
        return tests(rows)
    if any("recompute" in row for row in rows):
        return text(rows, TRAIN_COLUMNS)
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in HIDDEN]
    more = [f"and {len(rows) - ROWS_SHOWN} more rows"] if len(rows) > ROWS_SHOWN else []
    return [*text(rows[:ROWS_SHOWN], columns), *more]


def of_part(results: Sequence[Any]) -> list[str]:
    """One line with the short facts of a part, then its rows."""
    facts = {
        key: value
        for content in results
        if isinstance(content, dict)
        for key, value in content.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    line = ["  ".join(f"{key}={short(value)}" for key, value in facts.items())] if facts else []
    try:
        rows = rows_of(results)
        return [*line, *(of_rows(rows) if rows else [])]
    except Exception as error:  # an unexpected form of row must not end the call; the rows are in the file
        return [*line, f"these rows make no table ({type(error).__name__}: {error}); the file has them"]


def of_call(summary: dict[str, Any]) -> str:
    """The whole table of a call; the states of the parts come last, where they are seen first on a terminal."""
    lines = []
    for part in summary["parts"]:
        if figures := of_part(part["results"]):
            lines += [f"== {part['part']}", *figures, ""]
    lines += text(summary["parts"], ["part", "state", "seconds"])
    return "\n".join(lines)


def markdown(summary: dict[str, Any], logs: Path) -> str:
    """A call as a document: the machine, the table, the end of each log."""
    facts = {key: value for key, value in summary["machine"].items() if key != "clocks"}
    lines = [f"# Call {summary['call']}: {summary['purpose']}", ""]
    lines += [f"- {key}: {json.dumps(value)}" for key, value in facts.items()]
    lines += ["", "```", of_call(summary), "```"]
    for log in sorted(logs.glob("*.txt")):
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
        lines += ["", f"## {log.stem}", "```", tail, "```"]
    return "\n".join(lines) + "\n"
