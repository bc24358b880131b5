"""What a run's log says of its circumstances can be published."""

import sys

import pytest

from tacaf.logs import environment, without_folders


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("/data/people/shards", ".../shards"),
        ("run=/a/b", "run=.../b"),
        ("data.shards=/a/b/", "data.shards=.../"),
        ("launch/configs/demo.yaml", "launch/configs/demo.yaml"),
        ("../shards", "../shards"),
        ("https://host/people/shards", "https://host/people/shards"),
        ("[/a/b, '/c/d']", "[.../b, '.../d']"),
        ("a/b", "a/b"),
    ],
)
def test_absolute_folders_are_cut_and_nothing_else(word, shown):
    assert without_folders(word) == shown


def test_the_command_is_shown_without_folders(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/x/launch/train.py", "--set", "run=/data/run"])
    assert environment(1)["command"] == "train.py --set run=.../run"
