"""Writes the two files of a call, call_N.json and call_N.md, with everything that its parts wrote."""

import json
import sys
from pathlib import Path
from typing import Any

from perf.calls.plan import CALLS
from perf.calls.rows import results_of
from perf.calls.tables import markdown, of_call
from tacaf.files import write_whole
from tacaf.vocabulary import InputError

BAD = ("failed", "stopped")


def unpack(file: Path, folder: Path) -> list[Path]:
    """Write the results of each part of a call to a separate file for the scripts that read them; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    found = list[Path]()
    for part in json.loads(file.read_text())["parts"]:
        several = len(part["results"]) > 1
        for k, result in enumerate(part["results"]):
            found.append(folder / f"{part['part']}{f'_{k}' if several else ''}.json")
            write_whole(found[-1], json.dumps(result, indent=1) + "\n")
    return found


class Summary:
    """The results of a call so far, rewritten after every part and every few seconds while one runs."""

    def __init__(self, number: int, out: Path, parts: Path, facts: dict[str, Any]) -> None:
        self.file, self.folder, self.broken = out / f"call_{number}.json", parts, False
        self.content: dict[str, Any] = {
            "call": number,
            "purpose": CALLS[number].purpose,
            "limit_s": CALLS[number].limit_s,
            "complete": False,
            "machine": facts,
            "parts": [],
        }

    def add(self, part: dict[str, Any]) -> None:
        """Add a part that has ended."""
        self.content["parts"].append({**part, "results": results_of(part["part"], self.folder)})
        print(f"{part['part']:16} {part['state']} ({part['seconds']} s)", flush=True)
        self.write()

    def running(self, part: str) -> None:
        """Keep what a part has written so far, in case the whole suite is stopped."""
        entry = {"part": part, "state": "running", "seconds": None, "results": results_of(part, self.folder)}
        self.write({**self.content, "parts": [*self.content["parts"], entry]})

    def end(self) -> None:
        """Print the table after all parts have ended."""
        self.content["complete"] = True
        self.write()
        print(f"\n{of_call(self.content)}", flush=True)

    def write(self, content: dict[str, Any] | None = None) -> None:
        """Write both files. A full disk does not end the call: it is reported once, and earlier files are kept."""
        content = content or self.content
        try:
            write_whole(self.file, json.dumps(content, indent=1) + "\n")
            write_whole(self.file.with_suffix(".md"), markdown(content, self.folder))
        except InputError as error:
            if not self.broken:
                print(f"warning: {error}; what was written before stays", file=sys.stderr)
            self.broken = True

    @property
    def right(self) -> bool:
        """Whether nothing failed or was stopped, and everything could be written."""
        return not self.broken and not any(part["state"].startswith(BAD) for part in self.content["parts"])
