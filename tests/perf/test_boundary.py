"""Every edge under attack: a few damaged files of each kind in every run, ten thousand in the long ones."""

import json

import pytest

from perf import boundary
from perf.attacks.mutations import mutate
from perf.attacks.outcome import Try, command_ended, read_damaged
from tacaf.vocabulary import InputError


def findings(groups, tries, tmp_path):
    found = boundary.attack(tmp_path, tries, 1, groups)
    assert len(found) >= tries // 100
    assert found
    return [one for one in found if not one.held]


@pytest.mark.slow
def test_damaged_files_are_refused_or_harmless(tmp_path):
    assert findings(["files"], 300, tmp_path) == []


@pytest.mark.long
def test_ten_thousand_damaged_files(tmp_path):
    assert findings(["files"], 10_000, tmp_path) == []


@pytest.mark.long
@pytest.mark.parametrize("group", ["arguments", "disk", "requests", "signals"])
def test_commands_under_attack(group, tmp_path):
    assert findings([group], 6000 if group in ("requests", "signals") else 0, tmp_path) == []


def test_every_damage_changes_the_file_and_can_be_made_again():
    data = json.dumps({"a": [1, 2, {"b": "c"}], "d": None}).encode()
    seen = set()
    for number in range(200):
        what, damaged = mutate(data, 0, number)
        assert damaged != data
        assert (what, damaged) == mutate(data, 0, number)
        seen.add(what.split(" ")[0])
    assert {"bit", "cut", "NaN"} <= seen


def test_an_attack_can_fail():
    """The judge tells findings from what held, or the whole table would mean nothing."""

    def broken():
        raise KeyError("x")

    def refused():
        raise InputError("one line")

    def badly():
        raise InputError("two\nlines")

    assert read_damaged("g", "n", broken, 1, True).verdict == "traceback"
    assert read_damaged("g", "n", badly, 1, True).verdict == "said badly"
    assert read_damaged("g", "n", lambda: 2, 1, True).verdict == "silent"
    assert [read_damaged("g", "n", read, 1, False).held for read in (refused, lambda: 1, lambda: 2)] == [True] * 3
    assert not command_ended("g", "n", 1, "", "Traceback (most recent call last):\n").held
    assert not command_ended("g", "n", 2, "", "error: one\nerror: two\n").held
    assert not command_ended("g", "n", None, "", "").held
    assert command_ended("g", "n", 2, "", "error: one\n").held


def test_the_summary_counts(tmp_path):
    tries = [Try("a", "1", "refused"), Try("a", "2", "silent"), Try("b", "1", "same")]
    assert [(row["group"], row["tries"], row["held"]) for row in boundary.summary(tries)] == [("a", 2, 1), ("b", 1, 1)]
