"""report.html of a run: results beside the published numbers, curves, ranked lists, circumstances; one file."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from tacaf.checkpoint import write_whole
from tacaf.draws import Stream, permutation
from tacaf.evaluation.curves import draw_curves
from tacaf.evaluation.published import NOT_MEASURED, PUBLISHED, SYSU_QUERIES, TABLE_1_NOTE
from tacaf.evaluation.ranking import MEASURES, distances, normalise
from tacaf.evaluation.trials import Trial
from tacaf.logs import read_metrics
from tacaf.vocabulary import InputError

TEMPLATE = Path(__file__).with_name("report.html")
REPORT = "report.html"
_MEDIA = {b"\xff\xd8": "jpeg", b"\x89P": "png", b"BM": "bmp"}  # by the first two bytes


class Match(NamedTuple):
    """A gallery image in a ranked list. `image` is the file's bytes."""

    image: bytes
    pid: int
    distance: float
    right: bool  # the query's identity


class RankedList(NamedTuple):
    """A query and the nearest gallery images, nearest first."""

    query_image: bytes
    query_pid: int
    matches: list[Match]


class Choice(NamedTuple):
    """A ranked list before its images are read: rows of the trial's feature set."""

    query: int
    matches: list[tuple[int, float]]  # row, distance


def choose_ranked_lists(trial: Trial, metric: str, n: int, shown: int, seed: int) -> list[Choice]:
    """`n` queries that have a match, drawn from the seed and never by their result, with their `shown` nearest.

    Images the protocol excludes are out of the lists, equal distances stand in gallery order. Fewer than `n` queries
    give fewer lists.
    """
    features = trial.features
    gallery_GD = normalise(features.features[trial.gallery_rows], metric)
    chosen: list[Choice] = []
    for place in permutation(len(trial.query_rows), Stream.RANKED_LISTS, seed, 0, 0).tolist():
        if len(chosen) == n:
            break
        query = int(trial.query_rows[place])
        eligible_G = np.ones(len(trial.gallery_rows), bool)
        if trial.exclusion is not None:
            eligible_G = trial.exclusion[1] != trial.exclusion[0][place]
        if not np.any(features.pid[trial.gallery_rows[eligible_G]] == features.pid[query]):
            continue
        distance_G = distances(normalise(features.features[[query]], metric), gallery_GD, metric)[0]
        nearest = [g for g in np.argsort(distance_G, kind="stable").tolist() if eligible_G[g]][:shown]
        chosen.append(Choice(query, [(int(trial.gallery_rows[g]), float(distance_G[g])) for g in nearest]))
    return chosen


def write_report(run: Path, ranked_lists: Sequence[RankedList] = ()) -> Path:
    """Write report.html into the run folder from its config, environment, metrics and results; the path of the file.

    Whole or not at all. InputError if the folder has no results.
    """
    results = [json.loads(path.read_text()) for path in sorted((run / "results").glob("*.json"))]
    results.sort(key=lambda result: (result["protocol"], result["mode"] or result["direction"], result["shots"] or 0))
    if not results:
        raise InputError(f"expected results in {run / 'results'}, found none; score the run first (launch/evaluate.py)")
    metrics = run / "metrics.jsonl"
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    text = environment.from_string(TEMPLATE.read_text()).render(
        name=run.resolve().name,
        results=results,
        measures=MEASURES,
        cell=_cell,
        published=PUBLISHED,
        ours=_ours(results),
        is_sysu=_is_sysu_mm01(results),
        sysu_queries=SYSU_QUERIES,
        not_measured=NOT_MEASURED,
        table_1_note=TABLE_1_NOTE,
        curves=draw_curves(list(read_metrics(metrics))) if metrics.is_file() else {},
        ranked_lists=[_shown(one) for one in ranked_lists],
        config=_text(run / "config.yaml"),
        starts=json.loads(_text(run / "environment.json") or "[]"),
    )
    write_whole(run / REPORT, text)
    return run / REPORT


def _cell(result: dict, name: str) -> str:
    """Mean and sample standard deviation in per cent."""
    spread = result["std"][name]
    return f"{100 * result['mean'][name]:.2f}" + ("" if spread is None else f" ± {100 * spread:.2f}")


def _ours(results: Sequence[dict]) -> dict[str, str]:
    """This run's single-shot rank-1/mAP under the columns of the published table."""
    columns = {
        ("sysu_mm01", "all_search"): "sysu_all",
        ("sysu_mm01", "indoor_search"): "sysu_indoor",
        ("regdb", "visible_to_infrared"): "regdb_visible_to_infrared",
        ("regdb", "infrared_to_visible"): "regdb_infrared_to_visible",
    }
    found = {}
    for result in results:
        column = columns.get((result["protocol"], result["mode"] or result["direction"]))
        if column and result["shots"] in (1, None):
            found[column] = f"{100 * result['mean']['rank1']:.1f}/{100 * result['mean']['mAP']:.1f}"
    return found


def _is_sysu_mm01(results: Sequence[dict]) -> bool:
    """Whether the queries are as many as SYSU-MM01's: a synthetic or cut set in its layout has another number."""
    return any(result["protocol"] == "sysu_mm01" and result["queries"] == SYSU_QUERIES for result in results)


def _shown(ranked: RankedList) -> dict[str, Any]:
    matches = [{**match._asdict(), "image": _data_uri(match.image)} for match in ranked.matches]
    return {"query_pid": ranked.query_pid, "query_image": _data_uri(ranked.query_image), "matches": matches}


def _data_uri(image: bytes) -> str:
    return f"data:image/{_MEDIA.get(image[:2], 'jpeg')};base64,{base64.b64encode(image).decode()}"


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
