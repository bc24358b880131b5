"""The table of a public data set: what its spreads are over, said of the rows as they are."""

import pytest

from launch.study.comparison import ComparisonRow, write_comparison
from launch.study.rows import ROWS
from tacaf.evaluation.score import score
from tests.evaluation.sets import feature_set

FACTS = {"set": "sysu_mm01", "identities": 395, "seeds": [0, 1]}


def row(name: str, seeds: int) -> ComparisonRow:
    results = [[score(feature_set(seed=seed), "sysu_mm01")] for seed in range(seeds)]
    return ComparisonRow(ROWS[name], results, [])


@pytest.mark.parametrize(
    ("finished", "said"),
    [
        ((2, 2), "standard deviation over 2 seeds."),
        ((1, 1), "standard deviation over the trials."),
        ((0, 0), "standard deviation over the trials."),
        ((2, 1), "standard deviation ({}: over 2 seeds, {}: over the trials)."),
    ],
)
def test_the_spread_is_named_by_the_seeds_that_finished(tmp_path, finished, said):
    rows = [row(name, seeds) for name, seeds in zip(("baseline", "full"), finished, strict=True)]
    write_comparison(tmp_path, "sysu_mm01", rows, FACTS)
    texts = [ROWS[name].text for name in ("baseline", "full")]
    assert said.format(*texts) in (tmp_path / "table.md").read_text()
