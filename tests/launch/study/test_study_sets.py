"""The sets of an ablation: what is scored of a packed one, and which sets are refused before anything is trained."""

from pathlib import Path

import pytest

from launch.study.study_sets import BenchmarkSet, PackedSet, choose_sets
from shards.pedestrians.benchmarks import BENCHMARKS
from shards.writer import Record
from shards.writer import pack as pack_records
from tacaf.train.config import Config, load_config
from tacaf.vocabulary import InputError, Modality, Split
from tests.shards.raw import write_image

CONFIG = Path("launch/configs/ablation.yaml")


def pack(folder: Path, counts: dict[Split, int], infrared: float = 1, name: str = "mine") -> Path:
    """A set of noise images with so many identities in every split: one visible image each, and one infrared image of
    this share of them.
    """
    records, splits, pid = [], dict[str, list[int]](), 0
    for split, count in counts.items():
        for number in range(count):
            pid += 1
            splits.setdefault(split, []).append(pid)
            for camid, modality in enumerate(Modality, 1):
                if modality is Modality.VISIBLE or number < infrared * count:
                    path = write_image(folder / "raw" / f"{pid}-{camid}.jpg", seed=len(records))
                    records.append(Record(path, pid, camid, modality, split, 1))
    return pack_records(records, folder / name, name, splits, root=folder / "raw", source="noise").folder


def config_of(one: PackedSet, *settings: str) -> Config:
    return load_config(CONFIG, [*one.settings, *settings, f"data.shards={one.folder}", "run=unused"])


def test_a_packed_set_is_scored_from_infrared_to_every_visible_image_unless_set_otherwise(tmp_path):
    [one] = choose_sets([], [pack(tmp_path, {Split.TRAIN: 8, Split.VAL: 2, Split.TEST: 2})], tmp_path)
    assert (one.name, one.title) == ("mine", "mine")
    assert one.about == "Set: mine, 24 images; identities: 8 train, 2 val, 2 test."
    evaluation = config_of(one).evaluation
    setting = evaluation.setting(evaluation.asked()[0])
    assert (setting.protocol.name, setting.search_name, setting.gallery_draw) == (
        "generic",
        "infrared_to_visible",
        None,
    )
    one.check(config_of(one), "test")
    assert config_of(one, "evaluation.protocol=llcm").evaluation.protocol == "llcm"


@pytest.mark.parametrize(
    ("counts", "infrared", "split", "says"),
    [
        ({Split.TRAIN: 8, Split.TEST: 2}, 1, "val", "'val'.* at least 2 .* got 0 .*--val-share"),
        ({Split.TRAIN: 8, Split.VAL: 1}, 1, "val", "'val'.* at least 2 .* got 1 .*more of them"),
        ({Split.TRAIN: 7, Split.VAL: 2}, 1, "val", "'train'.* at least 8 .* got 7 "),
        ({Split.TRAIN: 8, Split.VAL: 2}, 1, "test", "'test'.* at least 2 .* got 0 "),
        ({Split.TRAIN: 12, Split.VAL: 4}, 0.5, "val", "'train'.* got 6 .*12 with visible .*6 with infrared"),
    ],
)
def test_a_set_that_cannot_be_studied_is_refused(tmp_path, counts, infrared, split, says):
    one = PackedSet.open(pack(tmp_path, counts, infrared))
    with pytest.raises(InputError, match=says):
        one.check(config_of(one), split)


def test_a_public_set_is_not_scored_by_anothers_protocol(tmp_path):
    one = PackedSet.open(pack(tmp_path, {Split.TRAIN: 8, Split.VAL: 2}, name="llcm"))
    with pytest.raises(InputError, match=r"protocol llcm .*sysu_mm01"):
        one.check(config_of(one, "evaluation.protocol=sysu_mm01"), "val")


def test_a_benchmark_is_scored_by_the_protocol_of_its_layout(tmp_path):
    one = BenchmarkSet(BENCHMARKS["plain_1"], tmp_path)
    with pytest.raises(InputError, match=r"sysu_mm01.* plain_1 .*generic"):
        one.check(load_config(Path("launch/configs/own.yaml"), ["run=unused"]), "val")


def test_sets_of_one_name_are_refused_and_the_same_set_counts_once(tmp_path):
    counts = {Split.TRAIN: 8, Split.VAL: 2}
    first, second = pack(tmp_path / "a", counts), pack(tmp_path / "b", counts)
    assert [one.name for one in choose_sets(["plain_1", "plain_1"], [first, first], tmp_path)] == ["plain_1", "mine"]
    with pytest.raises(InputError, match=r"got mine in .*/a/mine and .*/b/mine"):
        choose_sets([], [first, second], tmp_path)


def test_a_folder_without_a_set_is_named(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        choose_sets([], [tmp_path], tmp_path)
