"""The file of a part: its circumstances and rows, written whole again after every row."""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tacaf.files import write_whole


class RowsFile:
    """Rows of one measurement. A process that is stopped leaves every row that it added."""

    def __init__(self, path: Path | None, **facts: Any) -> None:
        self.path, self.facts, self.rows = path, facts, list[dict[str, Any]]()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, **row: Any) -> dict[str, Any]:
        """Append the row, write the file and print the row."""
        self.rows.append(row)
        self.write()
        print("  ".join(f"{key}={short(value)}" for key, value in row.items()), flush=True)
        return row

    def write(self, complete: bool = False) -> None:
        """Write the file; `complete` says that no row is missing."""
        if self.path is not None:
            content = {**self.facts, "complete": complete, "rows": self.rows}
            write_whole(self.path, json.dumps(content, indent=1) + "\n")


def short(value: Any) -> str:
    """A value for a table: four figures of a float, a dash for nothing."""
    if value is None:
        return "-"
    if isinstance(value, dict):
        return " ".join(f"{key}={inner}" for key, inner in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def results_of(part: str, folder: Path) -> list[Any]:
    """What a part's files hold: <part>.json, or <part>.<number>.json of several processes."""
    found = []
    for path in sorted(folder.glob(f"{part}.*")):
        if path.suffix == ".json":
            with suppress(OSError, ValueError):  # not written yet, or not by us
                found.append(json.loads(path.read_text()))
    return found


def rows_of(results: Iterable[Any]) -> list[dict[str, Any]]:
    """All rows in them, in order."""
    lists = (content.get("rows", []) if isinstance(content, dict) else content for content in results)
    return [row for rows in lists for row in rows if isinstance(row, dict)]
