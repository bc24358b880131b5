"""Writes and reads the result file of a part of a call."""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from perf.parts.result_file import ResultFile


class RowsFile(ResultFile):
    """The result file of a part. Its rows are also printed, because the last lines of a part's output are shown."""

    def add(self, **row: Any) -> dict[str, Any]:
        super().add(**row)
        print("  ".join(f"{key}={short(value)}" for key, value in row.items()), flush=True)
        return row


def short(value: Any) -> str:
    """A value for a table: a float with four digits, a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, dict):
        return " ".join(f"{key}={inner}" for key, inner in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def results_of(part: str, folder: Path) -> list[Any]:
    """The content of a part's files: <part>.json, or <part>.<number>.json of several processes."""
    found = []
    for path in sorted(folder.glob(f"{part}.*")):
        if path.suffix == ".json":
            with suppress(OSError, ValueError):  # not written yet, or not a result file
                found.append(json.loads(path.read_text()))
    return found


def rows_of(results: Iterable[Any]) -> list[dict[str, Any]]:
    """All rows in them, in order."""
    lists = (content.get("rows", []) if isinstance(content, dict) else content for content in results)
    return [row for rows in lists for row in rows if isinstance(row, dict)]
