"""The page of the ablation's tables: up to date with the kept scores, and never made of some of them."""

import shutil

import pytest

from perf.ablation_tables import HEAD, ROOT, TABLES, page, section
from tacaf.vocabulary import InputError

RESULTS = ROOT / "perf" / "results"
PAGE = ROOT / "docs" / "ablation_tables.md"


def test_the_page_has_every_table():
    text = PAGE.read_text()
    assert text.startswith(HEAD)
    assert text.count("\n## ") == sum(len(table.splits) for table in TABLES)
    for table in TABLES:
        assert f"\n## {table.benchmark}, {table.title}, " in text


@pytest.mark.parametrize("title", ["rows with IPCAM", "trained three times as long"])
def test_the_page_is_up_to_date(title):
    [table] = [table for table in TABLES if table.title == title]
    assert section(RESULTS, table, "test") in PAGE.read_text(), "run python perf/ablation_tables.py"


def test_a_missing_training_is_named(tmp_path):
    [table] = [table for table in TABLES if table.title == "rows with IPCAM"]
    name = f"ablation_{table.benchmark}.jsonl"
    lines = (RESULTS / name).read_text().splitlines(keepends=True)
    (tmp_path / name).write_text("".join(line for line in lines if '"row": "aug_ipcam", "seed": 2' not in line))
    with pytest.raises(InputError, match=r"occluded_1\.jsonl.* aug_ipcam .*2"):
        page(tmp_path, [table])
    shutil.copy(RESULTS / name, tmp_path)
    assert page(tmp_path, [table._replace(rows=("baseline",), seeds=(0,))]).startswith(HEAD)
