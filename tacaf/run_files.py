"""The names of the parts of a run folder, and its two growing files: metrics.jsonl and environment.json.

Users read both with scripts and edit them by hand, so reading is lenient where that loses nothing: a line of metrics
that is not a record is skipped. Lines that are removed when a run resumes are kept in a copy of the file.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from pydantic import Field, RootModel

from tacaf.documents import Count, Document, parse, read_document
from tacaf.files import reason_of, shown, whole_file, write_json
from tacaf.vocabulary import InputError

CONFIG_FILE = "config.yaml"  # resolved
METRICS_FILE = "metrics.jsonl"  # gets a line per step
LOG_FILE = "run.log"  # log lines of every rank
ENVIRONMENT_FILE = "environment.json"  # gets an entry per start
BEST_MODEL_FILE = "best.safetensors"  # best so far on validation identities
REPORT_FILE = "report.html"  # written last
RESULTS_FOLDER = "results"
FEATURES_FILE = "features.npz"  # in the folder of the results
CHECKPOINTS_FOLDER = "checkpoints"
HEARTBEATS_FOLDER = "ranks"
WATCH_FOLDER = "watch"  # for TensorBoard and other monitors

MOST_LINE_BYTES = 2**16
MOST_ENVIRONMENT_BYTES = 2**24  # thousands of starts
Number = float | None  # null if it was not finite


class StepRecord(Document, extra="ignore"):
    """A line about one step. Unknown fields are ignored."""

    kind: Literal["step"]
    epoch: Count
    step: Count
    global_step: Count
    loss: Number
    terms: dict[str, Number]
    gradient_norm: Number = None
    lr: dict[str, float]
    images_per_s: float
    data_wait_share: float
    step_ms: Number = None
    peak_memory_mib: Number = None
    matrix_rate_share: Number = None  # of the GPUs' peak matrix rate; written if that rate is known


class EvaluationRecord(Document, extra="ignore"):
    """A line with the scores of an epoch."""

    kind: Literal["eval"]
    epoch: Count
    global_step: Count
    split: str
    rank1: float
    mAP: float
    mINP: float


class WarningRecord(Document, extra="ignore"):
    """A line that a person should read."""

    kind: Literal["warning"]
    global_step: Count
    text: str


Record = StepRecord | EvaluationRecord | WarningRecord


class MetricsLine(RootModel[Annotated[Record, Field(discriminator="kind")]]):
    """One line of metrics.jsonl."""


class NonFiniteStep(Document):
    """The content of nonfinite-step-*.json: a step that was not finite on this rank, and the images of its batch."""

    epoch: Count
    step: Count
    terms: dict[str, Number]
    gradient_norm: Number
    samples: list[str]  # keys of the images, in the order of the batch


class Start(Document, extra="allow"):
    """What `provenance.environment` returned at one start of a run. Fields may be missing; unknown ones are kept."""

    versions: dict[str, str | None] = Field(default_factory=dict)
    commit: str | None = None
    command: str = ""
    world_size: Annotated[int, Field(ge=1)] = 1
    cpu: str | None = None
    cpu_cores: int | None = None
    torch_threads: int | None = None
    gpus: list[str] = Field(default_factory=list)
    started: str = ""


class Starts(RootModel[list[Start]]):
    """The content of environment.json."""


def read_starts(path: Path) -> list[Start]:
    """The starts of a run; empty if there is no file. Raises InputError if the file is not valid."""
    if not path.exists():
        return []
    return read_document(path, Starts, MOST_ENVIRONMENT_BYTES, "move the file away; the run writes a new one").root


def add_start(path: Path, start: Start) -> str | None:
    """Append a start. If the file cannot be read, it is renamed, and a warning about that is returned; else None."""
    warning = None
    try:
        starts = [one.model_dump(exclude_unset=True) for one in read_starts(path)]
    except InputError as error:
        starts, kept = [], unused(path.with_name(f"{path.stem}-damaged{path.suffix}"))
        path.rename(kept)
        warning = f"{error}. The file is kept as {kept.name}, and a new one is begun"
    write_json(path, [*starts, start.model_dump(exclude_unset=True)])
    return warning


def unused(path: Path) -> Path:
    """The path if nothing is there; otherwise the path with the first free number in its name (`name-1.json`)."""
    candidate, number = path, 1
    while candidate.exists() or candidate.is_symlink():
        candidate, number = path.with_name(f"{path.stem}-{number}{path.suffix}"), number + 1
    return candidate


class MetricsWriter:
    """Appends JSON objects to metrics.jsonl, one per line, flushed at once. With `path` None, it writes nothing."""

    def __init__(self, path: Path | None, resume_at: int = 0) -> None:
        self.path = path
        self.said: str | None = None  # a warning if lines that are not records were removed: where they are kept
        if path is not None and path.exists():
            self.said = _keep_until(path, resume_at)

    def write(self, record: Record) -> None:
        """Append a record. Raises InputError if it cannot be written; the run can resume from its last checkpoint."""
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record.model_dump(mode="json", exclude_unset=True)) + "\n")
        except OSError as error:
            raise InputError(
                f"cannot write {shown(self.path)}: {reason_of(error)}; correct that and continue the run with --resume"
            ) from None


def read_metrics(path: Path) -> Iterator[Record]:
    """The records of a metrics.jsonl. Skips damaged lines, such as a last one cut by a kill."""
    try:
        with path.open("rb") as file:
            for line in _lines(file):
                record = _record(line)
                if record is not None:
                    yield record
    except OSError as error:
        raise InputError(f"cannot read {shown(path)}: {reason_of(error)}") from None


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines, with empty lines in place of each one of more than MOST_LINE_BYTES."""
    begins = True
    while line := file.readline(MOST_LINE_BYTES + 1):
        ends = line.endswith(b"\n")
        yield line if begins and (ends or len(line) <= MOST_LINE_BYTES) else b"\n"
        begins = ends


def _record(line: bytes) -> Record | None:
    try:
        return parse(line, MetricsLine, "a line", MOST_LINE_BYTES + 1).root
    except InputError:
        return None


def _keep_until(path: Path, global_step: int) -> str | None:
    """Remove the lines of steps after `global_step`, so that a resumed run writes every step once.

    If there are lines that are not records, apart from a last one cut by a kill, a copy of the original file is kept
    and a warning about it is returned; otherwise None.
    """
    odd = False
    kept = unused(path.with_name(f"{path.stem}-before-step-{global_step}{path.suffix}"))
    with path.open("rb") as file, whole_file(path) as new:
        for line in _lines(file):
            record = _record(line)
            if record is None:
                odd = odd or line.endswith(b"\n")
            elif record.global_step <= global_step:
                new.write(line if line.endswith(b"\n") else line + b"\n")
        if odd:
            shutil.copyfile(path, kept)
    return f"{path.name} had lines that are not records; the original file is kept as {kept.name}" if odd else None
