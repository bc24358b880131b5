"""An ablation's table as Markdown and JSON: rows with their spread over seeds, and paired differences."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from launch.study.bootstrap import Difference, paired_difference
from launch.study.identity_scores import IdentityScores
from launch.study.rows import Row
from tacaf.evaluation.ranking import HEADLINE

_LEGEND = (
    "Differences are in points, with their 95 % intervals; bold if the interval does not contain zero. ¹ One or two"
    " seeds: the interval does not reflect the spread over seeds reliably, so the difference does not count."
)


class AblationRow(NamedTuple):
    """A row with the scores measured so far."""

    row: Row
    seeds: Mapping[int, IdentityScores]  # of finished trainings
    lacks: Sequence[str]  # a sentence for each thing that is missing


def differences(row: AblationRow, other: AblationRow, resamplings: int, seed: int = 0) -> dict[str, Difference] | None:
    """The difference row - other for each measure, over the seeds that both have; None if they share no seed."""
    common = sorted(row.seeds.keys() & other.seeds.keys())
    if not common:
        return None
    one = row.seeds[common[0]]
    every = [side.seeds[number] for side in (row, other) for number in common]
    assert all(np.array_equal(one.pid_P, same.pid_P) for same in every), "scores of different identities"
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


def record(rows: Sequence[AblationRow], resamplings: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The table for programs, in fractions: every row's means by seed, and its differences with their intervals."""
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
                    name: {measure: value._asdict() for measure, value in compared.items()}
                    for name in one.row.against
                    if name in by_name and (compared := differences(one, by_name[name], resamplings)) is not None
                },
            }
            for one in rows
        ],
    }


def markdown(table: Mapping[str, Any], level: int = 1) -> str:
    """The record as Markdown: per cent, mean ± sample standard deviation over seeds, differences in points.

    level: of the heading. Below level 1, the page around the table contains the legend.
    """
    texts = {row["row"]: row["text"] for row in table["rows"]}
    lines = [f"{'#' * level} {table['title']}", "", *(f"{note}\n" for note in table["notes"])]
    if not table["complete"]:
        lines += ["**Not complete: the last column lists what is missing.**", ""]
    lines += ["| row | seeds | rank-1 | mAP | mINP | missing |", "| --- | --- | --- | --- | --- | --- |"]
    for row in table["rows"]:
        cells = [_spread([means[name] for means in row["seeds"].values()]) for name in HEADLINE]
        lines.append(f"| {row['text']} | {len(row['seeds'])} | {' | '.join(cells)} | {'; '.join(row['lacks'])} |")
    lines += ["", *([_LEGEND, ""] if level == 1 else [])]
    lines += ["| row | against | rank-1 | mAP | mINP |", "| --- | --- | --- | --- | --- |"]
    for row in table["rows"]:
        for key, compared in row["against"].items():
            cells = [_difference(Difference(**compared[name])) for name in HEADLINE]
            lines.append(f"| {row['text']} | {texts[key]} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "not measured"
    text = f"{100 * np.mean(values):.1f}"
    return text if len(values) < 2 else f"{text} ± {100 * np.std(values, ddof=1):.1f}"


def _difference(one: Difference) -> str:
    text = f"{100 * one.mean:+.1f} ({100 * one.low:+.1f} to {100 * one.high:+.1f})"
    if one.seeds < 3:
        return f"{text} ¹"
    return f"**{text}**" if one.sure else text
