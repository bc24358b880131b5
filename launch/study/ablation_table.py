"""An ablation's table: rows with their spread over seeds, and paired differences with intervals; Markdown and JSON."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from launch.study.bootstrap import Difference, paired_difference
from launch.study.identity_scores import IdentityScores
from launch.study.rows import Row
from tacaf.evaluation.ranking import HEADLINE

_LEGEND = (
    "Differences in points, with their 95 % intervals; bold where zero lies outside. ¹ One seed or two: the"
    " interval knows nothing, or hardly anything, of the spread over seeds; no such difference counts."
)


class MeasuredRow(NamedTuple):
    """A row as far as it is measured."""

    row: Row
    seeds: Mapping[int, IdentityScores]  # the finished ones
    lacks: Sequence[str]  # a sentence for each thing that is missing


def differences(row: MeasuredRow, other: MeasuredRow, resamplings: int, seed: int = 0) -> dict[str, Difference] | None:
    """row - other for each measure, over the seeds both have; None without one."""
    common = sorted(row.seeds.keys() & other.seeds.keys())
    if not common:
        return None
    one = row.seeds[common[0]]
    every = [side.seeds[number] for side in (row, other) for number in common]
    assert all(np.array_equal(one.pid_P, same.pid_P) for same in every), "scores of other identities"
    return {
        name: paired_difference(
            np.stack([row.seeds[number].sums[name] for number in common]),
            np.stack([other.seeds[number].sums[name] for number in common]),
            one.queries_P,
            resamplings,
            seed,
        )
        for name in HEADLINE
    }


def record(rows: Sequence[MeasuredRow], resamplings: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The table for programs, in fractions: per row every seed's means, and its differences with their intervals."""
    by_name = {one.row.name: one for one in rows}
    return {
        **facts,
        "complete": not any(row.lacks for row in rows),
        "resamplings": resamplings,
        "rows": [
            {
                "row": one.row.name,
                "text": one.row.text,
                "lacks": list(one.lacks),
                "seeds": {str(seed): scores.means() for seed, scores in sorted(one.seeds.items())},
                "against": {
                    name: {measure: value._asdict() for measure, value in found.items()}
                    for name in one.row.against
                    if name in by_name and (found := differences(one, by_name[name], resamplings)) is not None
                },
            }
            for one in rows
        ],
    }


def markdown(table: Mapping[str, Any], level: int = 1) -> str:
    """The record as Markdown: per cent, mean ± sample standard deviation over seeds, differences in points.

    level: of the heading. Below the first, the page around the table explains how it is to be read.
    """
    texts = {row["row"]: row["text"] for row in table["rows"]}
    lines = [f"{'#' * level} {table['title']}", "", *(f"{note}\n" for note in table["notes"])]
    if not table["complete"]:
        lines += ["**Not complete: the last column says what is missing.**", ""]
    lines += ["| row | seeds | rank-1 | mAP | mINP | missing |", "| --- | --- | --- | --- | --- | --- |"]
    for row in table["rows"]:
        cells = [_spread([means[name] for means in row["seeds"].values()]) for name in HEADLINE]
        lines.append(f"| {row['text']} | {len(row['seeds'])} | {' | '.join(cells)} | {'; '.join(row['lacks'])} |")
    lines += ["", *([_LEGEND, ""] if level == 1 else [])]
    lines += ["| row | against | rank-1 | mAP | mINP |", "| --- | --- | --- | --- | --- |"]
    for row in table["rows"]:
        for key, found in row["against"].items():
            cells = [_difference(Difference(**found[name])) for name in HEADLINE]
            lines.append(f"| {row['text']} | {texts[key]} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "not measured"
    text = f"{100 * np.mean(values):.1f}"
    return text if len(values) < 2 else f"{text} ± {100 * np.std(values, ddof=1):.1f}"


def _difference(found: Difference) -> str:
    text = f"{100 * found.mean:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    if found.seeds < 3:
        return f"{text} ¹"
    return f"**{text}**" if found.sure else text
