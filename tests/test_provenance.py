"""What a run's log says of its circumstances can be published."""

import sys

import pytest

from tacaf.provenance import environment, git_commit, published, without_folders


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("/data/people/shards", ".../shards"),
        ("run=/a/b", "run=.../b"),
        ("data.shards=/a/b/", "data.shards=.../b"),
        ("/home/me/my data/x", ".../x"),
        ("data.shards=/home/me/my data/x", "data.shards=.../x"),
        ("/root", ".../root"),
        ("C=/a//b/c", "C=.../c"),
        ("a:/x/y", "a:.../y"),
        ("3 / 4", "3 / 4"),
        (
            "train.py --config /a/b.yaml --set x=/c/d --set run=/e/f g/h",
            "train.py --config .../b.yaml --set x=.../d --set run=.../h",
        ),
        ("launch/configs/demo.yaml", "launch/configs/demo.yaml"),
        ("../shards", "../shards"),
        ("https://host/people/shards", "https://host/people/shards"),
        ("[/a/b, '/c/d']", "[.../b, '.../d']"),
        ("a/b", "a/b"),
    ],
)
def test_absolute_folders_are_cut_and_nothing_else(word, shown):
    assert without_folders(word) == shown


def test_a_record_is_published_without_folders_wherever_they_stand():
    assert published({"a": ["/x/y", {"b": "run=/x/z"}], "c": 3, "d": None}) == {
        "a": [".../y", {"b": "run=.../z"}],
        "c": 3,
        "d": None,
    }


def test_the_command_is_shown_without_folders(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/x/launch/train.py", "--set", "run=/data/run"])
    assert environment(1)["command"] == "train.py --set run=.../run"


def test_a_commit_given_by_the_environment_comes_first(monkeypatch):
    monkeypatch.setenv("TACAF_COMMIT", "abc123")
    assert git_commit() == "abc123"


@pytest.mark.slow
def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.delenv("TACAF_COMMIT", raising=False)
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None
