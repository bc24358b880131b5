"""A finished training that the tests of runs compare with."""

from pathlib import Path

import pytest

from tests.train.tiny_runs import command_of, run


@pytest.fixture(scope="session")
def finished(sysu_shards, tmp_path_factory) -> Path:
    """A run that was never interrupted, by a Python of its own, whose strings have other hashes than those it forks."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    done = run(*command_of(sysu_shards, folder), fork=False)
    assert "rank-1" in done.stdout
    assert str(folder / "report.html") in done.stdout
    return folder
