"""Writing report.html of a run: results next to published numbers, curves, pictures and circumstances in one file."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tacaf.datasets import SYSU_MM01, SYSU_MM01_QUERIES
from tacaf.evaluation.config import EvaluationConfig
from tacaf.evaluation.ranking import MEASURES
from tacaf.evaluation.results import Result, read_results
from tacaf.evaluation.text import cell
from tacaf.files import write_whole
from tacaf.pages import render
from tacaf.report.curves import draw_curves
from tacaf.report.overlay import Line
from tacaf.report.published import NOT_MEASURED, PUBLISHED, TABLE_1_NOTE
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
        ours=_ours(results),
        is_sysu=_is_sysu_mm01(results),
        sysu_queries=SYSU_MM01_QUERIES,
        not_measured=NOT_MEASURED,
        table_1_note=TABLE_1_NOTE,
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
    columns = {
        ("sysu_mm01", "all_search"): "sysu_all",
        ("sysu_mm01", "indoor_search"): "sysu_indoor",
        ("regdb", "visible_to_infrared"): "regdb_visible_to_infrared",
        ("regdb", "infrared_to_visible"): "regdb_infrared_to_visible",
    }
    cells: dict[str, str] = {}
    for result in results:
        column = columns.get((result.protocol, result.search))
        if column and result.shots in (1, None) and result.on_own_set:
            cells.setdefault(column, f"{100 * result.mean.rank1:.1f}/{100 * result.mean.mAP:.1f}")
    return cells


def _is_sysu_mm01(results: Sequence[Result]) -> bool:
    """Whether the set has as many queries as SYSU-MM01; a synthetic or reduced set in its layout has another number."""
    return any(
        result.protocol == SYSU_MM01.name and result.queries == SYSU_MM01_QUERIES and result.on_own_set
        for result in results
    )


def _data_uri(image: bytes) -> str:
    return f"data:image/{_MEDIA.get(image[:2], 'jpeg')};base64,{base64.b64encode(image).decode()}"


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
