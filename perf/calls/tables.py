"""The table that a call prints last: what became of each part, and the figures of those that left rows."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perf.calls.rows import read_rows, short

# Columns of rows that have many; other rows are shown whole.
TRAIN_COLUMNS = ("name", "forward_ms", "backward_ms", "optimizer_ms", "step_ms", "images_per_s", "peak_mib", "error")
HIDDEN = ("bytes", "flops", "steps_ms")
ROWS_SHOWN = 40


def text(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """Rows as lines of equal width."""
    cells = [list(columns), *([short(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def kernels(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each op, shape and pass; a column for each provider: its time in a graph, or in brackets without."""
    providers = list(dict.fromkeys(row["provider"] for row in rows))
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        key = (row["op"], short(row["shape"]), row.get("pass") or "-")
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
    """How many passed, and a line for each that did not."""
    bad = [row for row in rows if row["outcome"] != "passed"]
    passed = f"{len(rows) - len(bad)} tests passed, {len(bad)} did not"
    return [passed, *(f"{row['outcome']}: {row['test']}: {row['why']}" for row in bad[:ROWS_SHOWN])]


def of_rows(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The lines that suit these rows."""
    if "provider" in rows[0] and "op" in rows[0]:
        return kernels(rows)
    if "outcome" in rows[0]:
        return tests(rows)
    if "optimizer_ms" in rows[0] or "recompute" in rows[0]:
        return text(rows, TRAIN_COLUMNS)
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in HIDDEN]
    more = [f"and {len(rows) - ROWS_SHOWN} more rows"] if len(rows) > ROWS_SHOWN else []
    return [*text(rows[:ROWS_SHOWN], columns), *more]


def of_part(name: str, out: Path) -> list[str]:
    """The rows of a part, from all of its files."""
    rows = [row for path in sorted(out.glob(f"{name}*.json")) if _belongs(path, name) for row in read_rows(path)]
    return of_rows(rows) if rows else []


def _belongs(path: Path, name: str) -> bool:
    """Whether the file is the part's own: <part>.json, or <part>_<number>.json of several processes."""
    rest = path.stem.removeprefix(name)
    return rest == "" or (rest.startswith("_") and rest[1:].isdigit() and name == "tests")


def of_call(summary: dict[str, Any], out: Path) -> str:
    """Everything of a call, the states of the parts last, where they are seen."""
    lines = []
    for part in summary["parts"]:
        figures = of_part(part["part"], out)
        if figures:
            lines += [f"== {part['part']}", *figures, ""]
    lines += text(summary["parts"], ["part", "state", "seconds"])
    return "\n".join(lines)


def markdown(summary: dict[str, Any], out: Path) -> str:
    """The summary of a call as a document: the machine, the table, the end of each log."""
    facts = {key: value for key, value in summary["machine"].items() if key != "clocks"}
    lines = [f"# Call {summary['call']}: {summary['purpose']}", ""]
    lines += [f"- {key}: {json.dumps(value)}" for key, value in facts.items()]
    lines += ["", "```", of_call(summary, out), "```"]
    for log in sorted(out.glob("*.txt")):
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
        lines += ["", f"## {log.stem}", "```", tail, "```"]
    return "\n".join(lines) + "\n"
