"""An ablation's table: rows with their spread over seeds, and paired differences with intervals; Markdown and JSON."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from launch.study.bootstrap import Difference, paired_difference
from tacaf.evaluation.features import FeatureSet
from tacaf.evaluation.setting import Setting
from tacaf.evaluation.trials import make_trials

SHOWN = ("rank1", "mAP", "mINP")


class People(NamedTuple):
    """What one model scored, by the queries' identities: enough for means and for a bootstrap over identities."""

    pid_P: np.ndarray
    queries_P: np.ndarray  # how many of its queries have a match in any trial
    sums: dict[str, np.ndarray]  # of SHOWN, float [P]: over those queries, each the mean over the trials it matches in

    def means(self) -> dict[str, float]:
        return {name: float(values.sum() / self.queries_P.sum()) for name, values in self.sums.items()}

    def as_lists(self) -> dict[str, list]:
        """For a result file; `of_lists` reads it back. Six decimals: a mean over all queries loses less than 1e-6."""
        sums = {name: [round(float(value), 6) for value in values] for name, values in self.sums.items()}
        return {"pid": self.pid_P.tolist(), "queries": self.queries_P.tolist(), **sums}

    @classmethod
    def of_lists(cls, lists: Mapping[str, list]) -> "People":
        sums = {name: np.array(lists[name], float) for name in SHOWN}
        return cls(np.array(lists["pid"]), np.array(lists["queries"]), sums)


class Row(NamedTuple):
    """A row as it is written: words, the seeds that are there, what is missing."""

    key: str
    text: str
    against: tuple[str, ...]  # rows it is compared with
    seeds: Mapping[int, People]
    lacks: Sequence[str]


def score_people(features: FeatureSet, setting: Setting, metric: str, trials: int = 10) -> People:
    """Score the queries of every identity apart, for what needs more than means."""
    made = make_trials(features, setting, trials)
    found: dict[str, list[np.ndarray]] = {name: [] for name in SHOWN}
    for trial in made:
        ranks = trial.rank(metric, setting.unique_pids)
        valid_Q = ranks.matches_Q > 0
        for name, values in (
            ("rank1", ranks.first_Q == 1),
            ("mAP", ranks.average_precision_Q),
            ("mINP", ranks.inverse_penalty_Q),
        ):
            found[name].append(np.where(valid_Q, values, np.nan))
    pid_P, person_Q = np.unique(features.pid[made[0].query_rows], return_inverse=True)
    means = {name: _mean(np.stack(rows)) for name, rows in found.items()}
    matched_Q = np.isfinite(means["rank1"])
    sums = {name: np.bincount(person_Q, np.where(matched_Q, own, 0), len(pid_P)) for name, own in means.items()}
    return People(pid_P, np.bincount(person_Q, matched_Q, len(pid_P)).astype(int), sums)


def differences(row: Row, other: Row, resamplings: int, seed: int = 0) -> dict[str, Difference] | None:
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
        for name in SHOWN
    }


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
                "seeds": {str(number): people.means() for number, people in sorted(row.seeds.items())},
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
        "Differences in points, with their 95 % intervals; bold where zero lies outside. ¹ One seed or two: the"
        " interval knows nothing, or hardly anything, of the spread over seeds; no such difference counts.",
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
