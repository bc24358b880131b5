"""docs/tutorial_sysu.md: the numbers of ranks on the page and on that of clusters are numbers that the recipe takes."""

import re

import pytest

from tacaf.child_processes import ROOT
from tacaf.train.config import Config, load_config

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def recipe() -> Config:
    return load_config(ROOT / "launch" / "configs" / "sysu_mm01.yaml", [])


def test_the_ranks_of_the_tutorial_divide_the_recipes_batch(recipe):
    ranks = re.findall(r"--(?:ranks|num_accelerators) (\d+)", (DOCS / "tutorial_sysu.md").read_text())
    assert len(ranks) == 2
    assert not [number for number in ranks if recipe.data.plan.pair_groups % int(number)]


def test_the_cluster_page_has_the_numbers_of_ranks_for_each_batch(recipe):
    plan = recipe.data.plan
    section = (DOCS / "cluster.md").read_text().partition("## How many ranks")[2].partition("\n## ")[0]
    assert "on 1, 2 or 4 ranks" in section
    assert [number for number in range(1, 9) if plan.pair_groups % number == 0] == [1, 2, 4]
    larger = re.findall(r"`data\.plan\.identities_per_batch=(\d+)` allows (\d+) ranks, (\d+) allows (\d+)", section)
    assert larger
    for identities, ranks in (pair for found in larger for pair in (found[:2], found[2:])):
        assert int(identities) == plan.pair_group * int(ranks)
