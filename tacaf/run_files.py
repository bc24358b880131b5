"""What the parts of a run's folder are called, and the two files that grow: metrics.jsonl and environment.json.

Both are read by people's scripts and mended by hand, so reading is forgiving where nothing is lost by it: a line of
metrics that is no record is passed over. What is taken out of a file when a run resumes is kept beside it.
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
METRICS_FILE = "metrics.jsonl"  # grows by a line a step
LOG_FILE = "run.log"  # what the run says, from every rank
ENVIRONMENT_FILE = "environment.json"  # grows by an entry a start
BEST_MODEL_FILE = "best.safetensors"  # on validation identities, so far
REPORT_FILE = "report.html"  # written last
RESULTS_FOLDER = "results"
FEATURES_FILE = "features.npz"  # in the folder of the results
CHECKPOINTS_FOLDER = "checkpoints"
HEARTBEATS_FOLDER = "ranks"
WATCH_FOLDER = "watch"  # for TensorBoard and the like

MOST_LINE_BYTES = 2**16
MOST_ENVIRONMENT_BYTES = 2**24  # thousands of starts
Number = float | None  # null: it was not finite


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
    matrix_rate_share: Number = None  # of the GPUs' matrix rate; written where that rate is known


class EvaluationRecord(Document, extra="ignore"):
    """A line about the scores of an epoch."""

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
    """What nonfinite-step-*.json holds: a step that was not finite on this rank, and the images of its batch."""

    epoch: Count
    step: Count
    terms: dict[str, Number]
    gradient_norm: Number
    samples: list[str]  # keys of the images, in the order of the batch


class Start(Document, extra="allow"):
    """What `provenance.environment` says of one start of a run. Fields may be missing; unknown ones are kept."""

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
    """The starts of a run; none where there is no file. InputError for a file of another form."""
    if not path.exists():
        return []
    return read_document(path, Starts, MOST_ENVIRONMENT_BYTES, "a run writes it; move it away").root


def add_start(path: Path, start: Start) -> str | None:
    """Append a start. A file that cannot be read is kept under another name; what is said of it, else None."""
    said = None
    try:
        starts = [one.model_dump(exclude_unset=True) for one in read_starts(path)]
    except InputError as error:
        starts, kept = [], unused(path.with_name(f"{path.stem}-damaged{path.suffix}"))
        path.rename(kept)
        said = f"{error}. It is kept as {kept.name}, and a new one is begun"
    write_json(path, [*starts, start.model_dump(exclude_unset=True)])
    return said


def unused(path: Path) -> Path:
    """The path, or where something has it already the first of its numbered forms that nothing has."""
    found, number = path, 1
    while found.exists() or found.is_symlink():
        found, number = path.with_name(f"{path.stem}-{number}{path.suffix}"), number + 1
    return found


class MetricsWriter:
    """Appends one JSON object a line to metrics.jsonl, flushed at once; silent where `path` is None (other ranks)."""

    def __init__(self, path: Path | None, resume_at: int = 0) -> None:
        self.path = path
        self.said: str | None = None  # where lines that are no records were taken out: where they are
        if path is not None and path.exists():
            self.said = _keep_until(path, resume_at)

    def write(self, record: Record) -> None:
        """Append a line. Raises InputError if it cannot be written; the run resumes from its last checkpoint."""
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record.model_dump(mode="json", exclude_unset=True)) + "\n")
        except OSError as error:
            raise InputError(
                f"cannot write {shown(self.path)}: {reason_of(error)}; correct that and resume with --resume"
            ) from None


def read_metrics(path: Path) -> Iterator[Record]:
    """The records of a metrics.jsonl; a last line cut by a kill and any other damaged line are skipped."""
    try:
        with path.open("rb") as file:
            for line in _lines(file):
                record = _record(line)
                if record is not None:
                    yield record
    except OSError as error:
        raise InputError(f"cannot read {shown(path)}: {reason_of(error)}") from None


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines; in place of one of more than MOST_LINE_BYTES, empty ones."""
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
    """Drop the lines of steps after `global_step`, so that a resumed run writes every step once.

    Where there are lines that are no records, but for a last one that a kill has cut, the file as it was is kept
    beside it; what is said of that.
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
    return f"{path.name} had lines that are no records; the file as it was is kept as {kept.name}" if odd else None
