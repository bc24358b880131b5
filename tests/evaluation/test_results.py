"""The typed result: what it writes it reads, what it says of itself, and the schema."""

import argparse
import json

import pytest

from launch import evaluate
from tacaf.evaluation import __main__ as command
from tacaf.evaluation.circumstances import Circumstances, join_circumstances
from tacaf.evaluation.config import EvaluationConfig
from tacaf.evaluation.options import add_protocol_options, settings_of
from tacaf.evaluation.rerank import Rerank
from tacaf.evaluation.results import Result, read_result, read_results, write_results
from tacaf.evaluation.score import score
from tacaf.evaluation.text import protocol_text
from tacaf.vocabulary import InputError
from tests.evaluation.sets import feature_set

KNOWN = {"split": "test", "embedding": "full", "flip": False, "seed": 3}
KNOWN |= {"trained_on": {"set": "own", "sha256": "ab" * 32, "split": "trainval"}}
KNOWN |= {"scored_on": {"set": "own", "sha256": "ab" * 32}}


def result_of(**options) -> Result:
    known = KNOWN | options.pop("known", {})
    return score(feature_set(), "sysu_mm01", circumstances=known, **options)


def test_a_result_reads_back_and_is_written_again_byte_for_byte(tmp_path):
    result = result_of(rerank=Rerank(5, 2, 0.5))
    [path] = write_results([result], tmp_path)
    assert read_result(path) == result
    [again] = write_results([read_result(path)], tmp_path / "again")
    assert again.read_bytes() == path.read_bytes()
    assert result["mean"]["rank1"] == result.mean.rank1
    with pytest.raises(KeyError):
        result["rank1"]


def test_a_result_of_an_earlier_version_is_read_and_keeps_its_fields(tmp_path):
    values = result_of().as_json()
    for name in ("scored_on", "warnings", "unique_ids", "locations", "query_list", "gallery_list", "seed", "versions"):
        del values[name]
    values["of a later version"] = [1]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(values))
    assert read_result(path).as_json() == values
    assert read_result(path).on_own_set


@pytest.mark.parametrize(("weight", "words"), [(0.5, ", parts weighted 0.5,"), (1, None), (None, None)])
def test_the_weight_of_the_parts_is_kept_and_named_where_it_is_not_1(tmp_path, weight, words):
    result = result_of(known={"part_weight": weight})
    [path] = write_results([result], tmp_path)
    assert read_result(path).part_weight == read_result(path).circumstances.part_weight == weight
    assert words in protocol_text(result) if words else "weighted" not in protocol_text(result)


@pytest.mark.parametrize("wrong", [{"mean": None}, {"rerank": True}, {"chance_rank1": 2}, {"trials": []}])
def test_a_wrong_field_is_named(tmp_path, wrong):
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps({**result_of().as_json(), **wrong}))
    with pytest.raises(InputError, match=rf"wrong\.json: {next(iter(wrong))}"):
        read_result(path)


def test_a_result_knows_whether_it_was_scored_as_its_training_does():
    settings = EvaluationConfig()
    assert result_of().scored_as(settings)
    other = {"set": "other", "sha256": "cd" * 32}
    for result in (
        result_of(metric="euclidean"),
        result_of(rerank=Rerank()),
        result_of(known={"flip": True}),
        result_of(known={"embedding": "global_only"}),
        result_of(known={"scored_on": other}),
    ):
        assert not result.scored_as(settings)
    assert result_of(known={"scored_on": other}).file_stem().endswith("-on-other-cdcdcdcd")
    assert result_of(known={"split": "val"}).file_stem("full") == "sysu_mm01-all_search-1shot-literature-val"
    assert result_of(known={"flip": True}).file_stem("global_only").endswith("-full-flip")


def test_another_number_of_trials_replaces_nothing(tmp_path):
    for trials in (10, 3, 10, 3):
        write_results([result_of(trials=trials)], tmp_path)
    stem = "sysu_mm01-all_search-1shot-literature"
    assert {path.stem for path in tmp_path.glob("*.json")} == {stem, f"{stem}-2"}
    assert [len(result.trials) for result in read_results(tmp_path)] == [10, 3]


def test_circumstances_that_differ_between_splits_become_lists():
    joined = join_circumstances([Circumstances.of(KNOWN | {"split": f"test_{n}", "seed": 3}) for n in (1, 2)])
    assert joined.split == ["test_1", "test_2"]
    assert joined.seed == 3


def test_the_schema_lists_every_field_of_a_result(capsys):
    assert command.main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert list(schema["properties"]) == list(result_of().as_json())
    assert {"trials", "mean", "std"} <= set(schema["required"])


@pytest.mark.parametrize(("file", "names"), [("metrics", ["StepRecord", "WarningRecord"]), ("environment", ["Start"])])
def test_the_schemas_of_a_runs_files(capsys, file, names):
    assert command.main(["schema", file]) == 0
    assert set(names) <= set(json.loads(capsys.readouterr().out)["$defs"])


def test_both_scoring_commands_have_the_same_protocol_options():
    """And each has every one of them, with the same help but for the default."""
    words = ["--protocol", "generic", "--unique-ids", "--trials", "3", "--device", "cuda:1", "--exclude", "camera"]
    words += ["--rerank", "4", "2", "0.5", "--metric", "euclidean"]
    first = command._parser().parse_args(["score", "--features", "F.npz", *words])
    second = evaluate.parse(None, ["--run", "R", "--shards", "S", *words])
    shared = argparse.ArgumentParser(add_help=False)
    add_protocol_options(shared, every=True)
    for action in shared._actions:
        assert getattr(first, action.dest) == getattr(second, action.dest), action.dest


def test_evaluation_takes_every_search_and_scoring_the_first():
    parser = argparse.ArgumentParser()
    add_protocol_options(parser, every=True)

    def names(*words: str, every: bool) -> list:
        return [(one.search_name, one.shots) for one in settings_of(parser.parse_args([*words]), every=every)]

    sysu = ("--protocol", "sysu_mm01")
    assert names(*sysu, every=False) == [("all_search", 1)]
    assert names(*sysu, every=True) == [(mode, n) for mode in ("all_search", "indoor_search") for n in (1, 10)]
    assert names(*sysu, "--mode", "indoor_search", "--shots", "10", every=True) == [("indoor_search", 10)]
    assert names("--protocol", "llcm", every=True) == [("infrared_to_visible", 1), ("visible_to_infrared", 1)]
    assert names("--protocol", "regdb", "--direction", "infrared_to_visible", every=True) == [
        ("infrared_to_visible", None)
    ]
    for wrong in (["--mode", "up"], ["--shots", "5"], ["--shots", "0"]):
        with pytest.raises(InputError, match=wrong[1]):
            names(*sysu, *wrong, every=True)
