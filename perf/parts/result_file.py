"""A benchmark's result file: one readable JSON document, rewritten whole after every row."""

import json
import sys
from pathlib import Path
from typing import Any

from tacaf.files import write_whole
from tacaf.vocabulary import InputError


class ResultFile:
    """Rows and their circumstances; a run that is killed keeps every row that it has measured.

    `complete` is false until the last `write`. A full disk loses the newest rows, but not the older ones, and it does
    not end the run.
    """

    def __init__(self, path: Path | None, **facts: Any) -> None:
        self.path, self.facts, self.failed = path, facts, False
        self.rows: list[dict[str, Any]] = []
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, **row: Any) -> dict[str, Any]:
        """Append the row, write the file and return the row."""
        self.rows.append(row)
        self.write()
        return row

    def write(self, complete: bool = False) -> None:
        """Write the file; `complete` means that no row is missing."""
        if self.path is None:
            return
        try:
            content = {**self.facts, "complete": complete, "rows": self.rows}
            write_whole(self.path, json.dumps(content, indent=1) + "\n")
        except InputError as error:
            if not self.failed:
                print(f"warning: {error}; rows follow here", file=sys.stderr)
            self.failed = True
