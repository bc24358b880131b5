"""What is kept of an ablation's trainings: a line each, replaced in its place, whole or not written."""

import json
import threading

import pytest

from launch.study.kept import KeptResult, KeptScores, KeptTraining, kept_file
from tacaf.checkout import ROOT
from tacaf.run_files import Start
from tacaf.vocabulary import InputError

MEASURED = {"rank1": 0.5, "rank5": 0.6, "rank10": 0.7, "rank20": 0.8, "mAP": 0.4, "mINP": 0.3}
PEOPLE = {"pid": [7, 9], "queries": [2, 4], "rank1": [1.0, 2.0], "mAP": [0.5, 1.5], "mINP": [0.25, 1.0]}


def result(rank1: float) -> dict[str, object]:
    """A result as a line holds it, without the fields that may be missing."""
    nothing = ("mode", "direction", "shots", "gallery_draw", "gallery_draw_note", "embedding", "flip", "trained_on")
    return {
        "protocol": "generic",
        **dict.fromkeys(nothing),
        "split": "val",
        "metric": "cosine",
        "exclusion": "none",
        "embedding_width": 8,
        "rerank": False,
        "trials": [{**MEASURED, "rank1": rank1}],
        "mean": {**MEASURED, "rank1": rank1},
        "std": dict.fromkeys(MEASURED),
        "queries": 6,
        "valid_queries": 6,
        "gallery": 6,
        "chance_rank1": 0.2,
        "people": PEOPLE,
    }


def training(row: str, seed: int, rank1: float = 0.5) -> KeptTraining:
    return KeptTraining(
        benchmark="plain_1",
        row=row,
        seed=seed,
        settings=[f"seed={seed}"],
        scores={"val": KeptResult(**result(rank1))},
        config={"seed": seed},
        trainings=[Start(commit="abc")],
    )


def test_a_training_replaces_its_own_line_and_leaves_the_others(tmp_path):
    store = KeptScores(kept_file(tmp_path / "new", "plain_1"))
    assert store.find("full", 0) is None
    for seed in range(3):
        store.keep(training("full", seed))
    before = store.file.read_text().splitlines()
    store.keep(training("full", 1, rank1=0.75))
    after = store.file.read_text().splitlines()
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]
    for one in (store, KeptScores(store.file)):
        assert one.find("full", 1) == training("full", 1, rank1=0.75)
        assert one.find("baseline", 1) is None
    assert [path.name for path in store.file.parent.iterdir()] == ["ablation_plain_1.jsonl"]


def test_two_processes_lose_no_line_of_each_other(tmp_path):
    stores = [KeptScores(kept_file(tmp_path, "plain_1")) for _ in range(4)]
    assert all(store.find("full", 0) is None for store in stores)  # each has read the empty file

    def keep(number: int) -> None:
        for seed in range(5):
            stores[number].keep(training(f"row{number}", seed))

    threads = [threading.Thread(target=keep, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores[0].file.read_text().splitlines()) == 20


@pytest.mark.parametrize("damage", ["{", "[]", '{"benchmark": 1}', ""])
def test_a_damaged_line_is_named(tmp_path, damage):
    store = KeptScores(kept_file(tmp_path, "plain_1"))
    store.keep(training("full", 0))
    store.file.write_text(store.file.read_text() + damage + "\n")
    with pytest.raises(InputError, match=r"ablation_plain_1\.jsonl, line 2"):
        KeptScores(store.file).find("full", 0)


def test_a_line_is_json_as_it_was_kept(tmp_path):
    store = KeptScores(kept_file(tmp_path, "plain_1"))
    store.keep(training("full", 0, rank1=0.1 + 0.2))
    assert json.loads(store.file.read_text()) == training("full", 0, rank1=0.30000000000000004).as_json()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mean": {**MEASURED, "mAP": 1.5}}, "mAP"),
        ({"protocol": 3}, "protocol"),
        ({"people": {**PEOPLE, "queries": [2]}}, "queries: expected an entry for each of 2 identities, got 1"),
        ({"people": {**PEOPLE, "rank1": [1.0, "2"]}}, "rank1"),
    ],
)
def test_a_line_whose_scores_are_of_another_form_is_named(tmp_path, changes, named):
    store = KeptScores(kept_file(tmp_path, "plain_1"))
    line = {**training("full", 0).as_json(), "scores": {"val": {**result(0.5), **changes}}}
    store.file.write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match=rf"line 1: scores\.val\..*{named}"):
        store.find("full", 0)


@pytest.mark.parametrize("file", sorted(ROOT.glob("perf/results/**/ablation_*.jsonl")), ids=lambda file: file.stem)
def test_the_scores_of_the_documentation_are_read_and_written_byte_for_byte(file, tmp_path):
    """So that a new training changes no line but its own."""
    copy = tmp_path / file.name
    copy.write_bytes(file.read_bytes())
    first = json.loads(file.read_text().splitlines()[0])
    store = KeptScores(copy)
    store.keep(store.find(first["row"], first["seed"]))
    assert copy.read_bytes() == file.read_bytes()
