"""What is kept of an ablation's trainings: a line each, replaced in its place, whole or not written."""

import json
import threading

import pytest

from launch.study.kept import KeptScores, KeptTraining, kept_file
from tacaf.vocabulary import InputError


def training(row: str, seed: int, rank1: float = 0.5) -> KeptTraining:
    return KeptTraining(
        benchmark="plain_1",
        row=row,
        seed=seed,
        settings=[f"seed={seed}"],
        scores={"val": {"mean": {"rank1": rank1}}},
        config={"seed": seed},
        trainings=[{"commit": "abc"}],
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
    assert json.loads(store.file.read_text()) == training("full", 0, rank1=0.30000000000000004).model_dump()
