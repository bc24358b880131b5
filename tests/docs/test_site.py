"""The documents as a site: what is generated is up to date, and what is broken fails the build."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docs import generate
from tacaf.child_processes import ROOT, child_environment
from tests.docs.pages import PAGES
from tests.processes import LIMIT_S


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_configuration_page_is_up_to_date():
    page = generate.PAGE.read_text()
    assert generate.configuration(page) == page, "run python docs/generate.py"


def test_the_drawing_of_the_graph_is_up_to_date_and_has_every_edge():
    drawn = generate.GRAPH.read_text()
    assert generate.generated()[generate.GRAPH] == drawn, "run python docs/generate.py"
    edges = drawn.count('class="ring"') + drawn.count('class="part"') + drawn.count('class="star"') - 3  # of the key
    assert edges == (58 - 10) / 2, "each edge twice in the mask, and every node beside itself"


def test_a_stale_or_missing_setting_is_noticed_and_what_is_written_by_hand_stays():
    page = generate.PAGE.read_text()
    by_hand = "A sentence by hand.\n" + page
    for stale in (by_hand.replace("`train.epochs`", "`train.epoch`"), by_hand.partition("## `train`")[0]):
        assert stale != by_hand
        assert generate.configuration(stale) == by_hand


def build(folder: Path) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "mkdocs", "build"]
    environment = child_environment(NO_MKDOCS_2_WARNING="1")
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The repository, with documents that can be changed."""
    pytest.importorskip("mkdocs")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for name in ("tacaf", "kernels", "perf", "mkdocs.yml", "LICENSE", "CITATION.cff"):
        (tmp_path / name).symlink_to(ROOT / name)
    for page in PAGES:
        if page.parent == ROOT:
            shutil.copy(page, tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_site_is_built_and_files_that_it_links_to_are_part_of_it(copy):
    done = build(copy)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    site = copy / "build" / "docs"
    assert 'href="repository/perf/results/data_cpu.json"' in (site / "measured.html").read_text()
    assert (site / "repository/perf/results/data_cpu.json").is_file()
    assert "soft_align" in (site / "api.html").read_text()
    outside = [page.name for page in site.rglob("*.html") if 'src="http' in page.read_text()]
    assert not outside, "a page that loads something from elsewhere"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "names"),
    [
        ("[x](absent.md)", "absent.md"),
        ("[x](training.md#absent)", "#absent"),
        ("[x](../perf/absent.json)", "absent.json"),
        ("[x](../CONTRIBUTING.md#absent)", "#absent"),
        ("::: tacaf.inference.Absent", "Absent"),
    ],
)
def test_what_is_broken_fails_the_build(copy, broken, names):
    page = copy / "docs" / "thermal.md"
    page.write_text(f"{page.read_text()}\n{broken}\n")
    done = build(copy)
    assert done.returncode != 0
    assert names in done.stdout + done.stderr


@pytest.mark.slow
def test_a_page_that_is_not_in_the_navigation_fails_the_build(copy):
    (copy / "docs" / "lost.md").write_text("# Lost\n")
    done = build(copy)
    assert done.returncode != 0
    assert "lost.md" in done.stdout + done.stderr
