"""The table of a public data set as Markdown, HTML and JSON: our rows next to the published numbers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from launch.study.rows import Row
from tacaf.datasets import PUBLIC
from tacaf.evaluation.ranking import HEADLINE
from tacaf.evaluation.results import Result
from tacaf.evaluation.text import search_label
from tacaf.files import shown, write_whole
from tacaf.pages import render
from tacaf.report.published import (
    LLCM_NOTE,
    NOT_MEASURED,
    PAPER_TABLE_1,
    PUBLISHED,
    TABLE_1_NOTE,
    field_of,
)

TEMPLATE = Path(__file__).with_name("comparison.html")
TABLE = "table"


Column = tuple[str, int | None]  # mode or direction, shots


class ComparisonRow(NamedTuple):
    """A row with the results measured so far."""

    row: Row
    seeds: list[list[Result]]  # for every finished seed, the results of its model
    lacks: list[str]  # a sentence for each thing that is missing


class Score(NamedTuple):
    """A figure in per cent and its spread, over seeds if there are several, otherwise over trials."""

    mean: float
    spread: float | None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.spread is None else f" ± {self.spread:.2f}")


def scores_of(row: ComparisonRow) -> dict[Column, dict[str, Score]]:
    """A row's scores by column and measure. A column that one of its seeds lacks is left out."""
    by_column: dict[Column, list[Result]] = {}
    for results in row.seeds:
        for result in results:
            by_column.setdefault(column_of(result), []).append(result)
    complete = {column: results for column, results in by_column.items() if len(results) == len(row.seeds)}
    return {column: {name: _score(results, name) for name in HEADLINE} for column, results in complete.items()}


def column_of(result: Result) -> Column:
    return result.search, result.shots


def write_comparison(folder: Path, data_set: str, rows: Sequence[ComparisonRow], facts: dict[str, Any]) -> list[Path]:
    """Write table.md, table.html and table.json into `folder`, each atomically. Returns their paths.

    facts: `set`, `identities` (of the training), `seeds`, and anything else that was the same for all rows. All of them
    are written into the JSON and below the table.
    """
    content = _content(data_set, rows, facts)
    texts = {
        "md": _markdown(content),
        "html": render(TEMPLATE, **content),
        "json": json.dumps(_record(data_set, rows, facts), indent=1, allow_nan=False),
    }
    paths = []
    for suffix, text in texts.items():
        paths.append(folder / f"{TABLE}.{suffix}")
        write_whole(paths[-1], text)
    return paths


def _score(results: Sequence[Result], name: str) -> Score:
    means = [100 * result.mean[name] for result in results]
    if len(means) > 1:
        return Score(float(np.mean(means)), float(np.std(means, ddof=1)))
    spread = results[0].std[name]
    return Score(means[0], None if spread is None else 100 * spread)


def _content(data_set: str, rows: Sequence[ComparisonRow], facts: dict[str, Any]) -> dict[str, Any]:
    """The content of the Markdown and the HTML as text: columns, our rows, published rows, notes."""
    measured = [scores_of(row) for row in rows]
    columns = list(dict.fromkeys(column for scores in measured for column in scores))
    notes = [
        f"Per cent; mean ± sample standard deviation {_spread(data_set, rows)}. Models of the last epoch; nothing was"
        " chosen by test scores.",
        *_other_set(data_set, facts),
    ]
    return {
        "title": f"{facts['set']}: TACAFNet, row by row",
        "columns": [search_label(*column) for column in columns],
        "measures": [name.replace("rank1", "rank-1") for name in HEADLINE],
        "ours": [
            {
                "text": row.row.text,
                "cells": [
                    [str(scores[column][name]) for name in HEADLINE] if column in scores else None for column in columns
                ],
                "lacks": "; ".join(row.lacks),
            }
            for row, scores in zip(rows, measured, strict=True)
        ],
        "published": _published(data_set, columns),
        "published_note": LLCM_NOTE if data_set == "llcm" else "",
        "table_1": PAPER_TABLE_1 if data_set == "sysu_mm01" else (),
        "table_1_note": TABLE_1_NOTE,
        "notes": [*notes, *dict.fromkeys(_result_note(row) for row in rows if row.seeds)],
        "facts": {name: shown(value) if isinstance(value, str) else json.dumps(value) for name, value in facts.items()},
    }


def _spread(data_set: str, rows: Sequence[ComparisonRow]) -> str:
    """Over what the rows' standard deviations are: the finished seeds of a row, or the trials of its only seed."""
    trials = "over the splits" if PUBLIC[data_set].numbered_splits else "over the trials"
    over = {row.row.text: f"over {len(row.seeds)} seeds" if len(row.seeds) > 1 else trials for row in rows if row.seeds}
    if len(set(over.values())) > 1:
        return "(" + ", ".join(f"{name}: {words}" for name, words in over.items()) + ")"
    return next(iter(over.values()), trials)


def _published(data_set: str, columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Published rank-1/mAP in their columns. Empty rows are left out."""
    fields = [field_of(data_set, *column) for column in columns]
    rows = []
    for row in PUBLISHED:
        values = [getattr(row, field) or "" if field else "" for field in fields]
        if any(values):
            rows.append({"text": f"{row.method} (published)", "cells": values})
    return rows


def _other_set(data_set: str, facts: dict[str, Any]) -> list[str]:
    """A note if the set has the data set's layout but another size, so that published figures do not apply to it."""
    expected = PUBLIC[data_set].training_identities
    if facts["identities"] in expected:
        return []
    words = " or ".join(map(str, expected))
    return [
        f"This is not {data_set}: it has {facts['identities']} training identities instead of {words}. The published"
        f" figures below were measured on the real data set and cannot be compared. {NOT_MEASURED}"
    ]


def _result_note(row: ComparisonRow) -> str:
    """What all results of a row have in common."""
    first = row.seeds[0][0]
    parts = [first.protocol, f"{len(first.trials)} trials", first.metric, f"excluded: {first.exclusion}"]
    parts += [f"{first.gallery_draw} draw"] if first.gallery_draw else []
    parts += [f"{first.embedding} embedding"]
    parts += [f"parts weighted {first.part_weight:g}"] if first.part_weight not in (None, 1) else []
    parts += ["flip" if first.flip else "no flip"]
    parts += ["re-ranked" if first.rerank else "no re-ranking"]
    return ", ".join(parts) + "."


def _markdown(content: dict[str, Any]) -> str:
    names = [f"{column}: {' / '.join(content['measures'])}" for column in content["columns"]]
    lines = [f"# {content['title']}", "", *(f"{note}\n" for note in content["notes"])]
    lines += [_line(["", *names, "missing"]), _line(["---"] * (len(names) + 2))]
    for row in content["ours"]:
        texts = [" / ".join(cell) if cell else "not measured" for cell in row["cells"]]
        lines.append(_line([row["text"], *texts, row["lacks"]]))
    lines += ["", "Published, rank-1/mAP, not measured here:", ""]
    lines += [_line(["", *content["columns"]]), _line(["---"] * (len(names) + 1))]
    lines += [_line([row["text"], *row["cells"]]) for row in content["published"]]
    lines += ["", content["published_note"]] if content["published_note"] else []
    if content["table_1"]:
        lines += ["", f"The paper's Table 1 as printed. {content['table_1_note']}", ""]
        lines += [_line(["", "rank-1/mAP"]), _line(["---"] * 2), *map(_line, content["table_1"])]
    return "\n".join([*lines, "", *(f"- {name}: {value}" for name, value in content["facts"].items()), ""])


def _line(parts: Sequence[str]) -> str:
    return "| " + " | ".join(part.replace("|", "\\|") for part in parts) + " |"


def _record(data_set: str, rows: Sequence[ComparisonRow], facts: dict[str, Any]) -> dict[str, Any]:
    """The table for programs, in fractions, with every result that it is made of."""
    return {
        "data_set": data_set,
        **facts,
        "complete": not any(row.lacks for row in rows),
        "rows": [
            {
                "row": one.row.name,
                "text": one.row.text,
                "lacks": one.lacks,
                "results_of_seeds": [[result.as_json() for result in results] for results in one.seeds],
            }
            for one in rows
        ],
    }
