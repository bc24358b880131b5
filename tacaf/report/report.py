"""Writing report.html of a run: results next to published numbers, curves, pictures and circumstances in one file."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tacaf.datasets import PUBLIC
from tacaf.evaluation.config import EvaluationConfig
from tacaf.evaluation.ranking import MEASURES
from tacaf.evaluation.results import Result, read_results
from tacaf.evaluation.text import cell
from tacaf.files import write_whole
from tacaf.pages import render
from tacaf.report.curves import draw_curves
from tacaf.report.overlay import Line
from tacaf.report.published import COLUMNS, LLCM_NOTE, NOT_MEASURED, PUBLISHED, TABLE_1_NOTE, field_of
from tacaf.run_files import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    METRICS_FILE,
    REPORT_FILE,
    RESULTS_FOLDER,
    read_metrics,
    read_starts,
)
from tacaf.vocabulary import InputError

TEMPLATE = Path(__file__).with_name("report.html")
_MEDIA = {b"\xff\xd8": "jpeg", b"\x89P": "png", b"BM": "bmp", b"RI": "webp"}  # by the first two bytes


class ShownImage(NamedTuple):
    """A gallery image in a ranked list. `image` is the file's bytes."""

    image: bytes
    pid: int
    distance: float
    right: bool  # whether it shows the query's identity


class ShownList(NamedTuple):
    """A query and the nearest gallery images, nearest first."""

    query_image: bytes
    query_pid: int
    average_precision: float  # of the whole list, 0..1
    matches: list[ShownImage]


class PairPicture(NamedTuple):
    """A query and a gallery image: how points of one map to the other, and the person mask of both."""

    query_image: bytes
    query_mask: bytes  # the image with its person mask drawn over it
    query_pid: int
    match: ShownImage
    match_mask: bytes
    lines: list[Line]


class Pictures(NamedTuple):
    """The pictures of a report. Empty parts are left out."""

    ranked_lists: Mapping[str, Sequence[ShownList]] = {}  # by how the queries were chosen
    figures: Mapping[str, str] = {}  # title -> SVG: CMC, distances, map
    pairs: Sequence[PairPicture] = ()
    aspect: float = 0.5  # width divided by height of the model's images
    given: str | None = None  # the name of the feature file, if it is not the run's own


def write_report(run: Path, settings: EvaluationConfig, pictures: Pictures | None = None) -> Path:
    """Write report.html into the run folder from its config, environment, metrics and results. Returns its path.

    settings: how the run is usually scored; the headline shows such a result. The file is written atomically. Raises
    InputError if the folder has no results.
    """
    results = read_results(run / RESULTS_FOLDER, settings)
    if not results:
        raise InputError(f"there are no results in {run / 'results'}; score the run first (launch/evaluate.py)")
    metrics, pictures = run / METRICS_FILE, pictures or Pictures()
    text = render(
        TEMPLATE,
        name=run.resolve().name,
        results=results,
        measures=MEASURES,
        cell=cell,
        published=PUBLISHED,
        columns=COLUMNS,
        ours=_ours(results),
        not_comparable=_not_comparable(results),
        not_measured=NOT_MEASURED,
        notes=(LLCM_NOTE, TABLE_1_NOTE),
        curves=draw_curves(read_metrics(metrics)) if metrics.is_file() else {},
        pictures=pictures,
        image=_data_uri,
        config=_text(run / CONFIG_FILE),
        starts=read_starts(run / ENVIRONMENT_FILE),
    )
    write_whole(run / REPORT_FILE, text)
    return run / REPORT_FILE


def _ours(results: Sequence[Result]) -> dict[str, str]:
    """This run's single-shot rank-1/mAP under the columns of the published table: the first result of each."""
    cells: dict[str, str] = {}
    for result in results:
        field = field_of(result.protocol, result.search, result.shots)
        if field and result.on_own_set:
            cells.setdefault(field, f"{100 * result.mean.rank1:.1f}/{100 * result.mean.mAP:.1f}")
    return cells


def _not_comparable(results: Sequence[Result]) -> list[str]:
    """A sentence for each protocol whose results cannot be compared with published ones; empty if all can.

    A synthetic or reduced set in the layout of a public one has another number of queries.
    """
    sentences = []
    for protocol in dict.fromkeys(result.protocol for result in results):
        own = [result for result in results if result.protocol == protocol and result.on_own_set]
        public = PUBLIC.get(protocol)
        if public is None:
            sentences.append(f"There are no published figures under the protocol {protocol}.")
        elif public.test_queries is None:
            sentences.append(
                f"Only results on the published images of {protocol} can be compared; this report does not check that."
            )
        elif not any(result.queries == public.test_queries for result in own):
            sentences.append(
                f"This run was not scored on {protocol}, whose test set has {public.test_queries:,} queries: its row is"
                " shown only for orientation and cannot be compared with the published ones."
            )
    return sentences


def _data_uri(image: bytes) -> str:
    return f"data:image/{_MEDIA.get(image[:2], 'jpeg')};base64,{base64.b64encode(image).decode()}"


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
