"""An ablation's table: rows with their spread over seeds, and paired differences with intervals; Markdown and JSON."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tacaf.evaluation.bootstrap import Difference, paired_difference
from tacaf.evaluation.features import FeatureSet
from tacaf.evaluation.trials import Setting, make_trials

SHOWN = ("rank1", "mAP", "mINP")


class Queries(NamedTuple):
    """What every query of one model scored, mean over the trials in which it has a match; NaN where in none."""

    pid_Q: np.ndarray
    measures: dict[str, np.ndarray]  # of SHOWN, float [Q]


class Row(NamedTuple):
    """A row as it is written: words, the seeds that are there, what is missing."""

    key: str
    text: str
    against: tuple[str, ...]  # rows it is compared with
    seeds: Mapping[int, Queries]
    lacks: Sequence[str]


def score_queries(features: FeatureSet, setting: Setting, metric: str, trials: int = 10) -> Queries:
    """Score every query by itself, for what needs more than means."""
    made = make_trials(features, setting, trials)
    found: dict[str, list[np.ndarray]] = {name: [] for name in SHOWN}
    for trial in made:
        ranks = trial.rank(metric, setting.unique_pids)
        valid_Q = ranks.matches_Q > 0
        for name, values in (
            ("rank1", ranks.first_Q == 1), ("mAP", ranks.average_precision_Q), ("mINP", ranks.inverse_penalty_Q)
        ):  # fmt: skip
            found[name].append(np.where(valid_Q, values, np.nan))
    pid_Q = features.pid[made[0].query_rows]
    return Queries(pid_Q, {name: _mean(np.stack(rows)) for name, rows in found.items()})


def differences(row: Row, other: Row, resamplings: int, seed: int = 0) -> dict[str, Difference] | None:
    """row - other for each measure, over the seeds both have; None without one."""
    common = sorted(row.seeds.keys() & other.seeds.keys())
    if not common:
        return None
    pid_Q = row.seeds[common[0]].pid_Q
    return {
        name: paired_difference(
            np.stack([row.seeds[number].measures[name] for number in common]),
            np.stack([other.seeds[number].measures[name] for number in common]),
            pid_Q, resamplings, seed,
        )
        for name in SHOWN
    }  # fmt: skip


def record(rows: Sequence[Row], resamplings: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The table for programs, in fractions: per row every seed's means, and its differences with their intervals."""
    by_key = {row.key: row for row in rows}
    return {
        **facts,
        "complete": not any(row.lacks for row in rows),
        "resamplings": resamplings,
        "rows": [
            {
                "row": row.key,
                "text": row.text,
                "lacks": list(row.lacks),
                "seeds": {str(number): _means(queries) for number, queries in sorted(row.seeds.items())},
                "against": {
                    key: {name: value._asdict() for name, value in found.items()}
                    for key in row.against
                    if key in by_key and (found := differences(row, by_key[key], resamplings)) is not None
                },
            }
            for row in rows
        ],
    }


def markdown(table: Mapping[str, Any]) -> str:
    """The record as a page: per cent, mean ± sample standard deviation over seeds, differences in points."""
    texts = {row["row"]: row["text"] for row in table["rows"]}
    lines = [f"# {table['title']}", "", *(f"{note}\n" for note in table["notes"])]
    if not table["complete"]:
        lines += ["**Not complete: the last column says what is missing.**", ""]
    lines += ["| row | seeds | rank-1 | mAP | mINP | missing |", "| --- | --- | --- | --- | --- | --- |"]
    for row in table["rows"]:
        cells = [_spread([means[name] for means in row["seeds"].values()]) for name in SHOWN]
        lines.append(f"| {row['text']} | {len(row['seeds'])} | {' | '.join(cells)} | {'; '.join(row['lacks'])} |")
    lines += [
        "",
        "Differences in points, with their 95 % intervals; bold where zero lies outside. ¹ One seed: the interval"
        " knows the spread over identities only and is too narrow.",
        "",
    ]
    lines += ["| row | against | rank-1 | mAP | mINP |", "| --- | --- | --- | --- | --- |"]
    for row in table["rows"]:
        for key, found in row["against"].items():
            cells = [_difference(Difference(**found[name])) for name in SHOWN]
            lines.append(f"| {row['text']} | {texts[key]} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _mean(values_TQ: np.ndarray) -> np.ndarray:
    """Mean over the trials, NaN for a query without a match in any."""
    valid_TQ = np.isfinite(values_TQ)
    count_Q = valid_TQ.sum(axis=0)
    return np.where(count_Q > 0, np.where(valid_TQ, values_TQ, 0).sum(axis=0) / np.maximum(count_Q, 1), np.nan)


def _means(queries: Queries) -> dict[str, float]:
    return {name: float(np.nanmean(values)) for name, values in queries.measures.items()}


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "not measured"
    text = f"{100 * np.mean(values):.1f}"
    return text if len(values) < 2 else f"{text} ± {100 * np.std(values, ddof=1):.1f}"


def _difference(found: Difference) -> str:
    text = f"{100 * found.mean:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    if found.seeds < 2:
        return f"{text} ¹"
    return f"**{text}**" if found.sure else text
