"""The file of a part: its circumstances and rows, written whole again after every row."""

import json
from pathlib import Path
from typing import Any

from tacaf.checkpoint import write_whole


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


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a part's file; none where the file is absent or was cut off."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    rows = content.get("rows", []) if isinstance(content, dict) else content
    return [row for row in rows if isinstance(row, dict)]
