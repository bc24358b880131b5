"""metrics.jsonl and environment.json: what is no record is passed over or kept aside, and nothing else is lost."""

import json
from pathlib import Path

import pytest

from perf.attacks.mutations import mutate
from tacaf.files import locked
from tacaf.report.curves import draw_curves
from tacaf.run_files import MOST_LINE_BYTES, MetricsWriter, Start, StepRecord, add_start, read_metrics, read_starts
from tacaf.train.config import load_config
from tacaf.train.run import open_folder, record_start
from tacaf.vocabulary import InputError
from tests.train.finished import DEMO

START = {"versions": {"python": "3.11", "triton": None}, "commit": None, "command": "train.py", "world_size": 1}
ODD = [
    b"",
    b"null",
    b"3",
    b"[]",
    b"{}",
    b"{",
    b'"step"',
    b"\xff\xfe",
    b"\x00",
    b'{"kind": "step"}',
    b'{"kind": 3}',
    b'{"kind": "warning", "text": "no step"}',
    b'{"kind": "warning", "global_step": "1", "text": ""}',
    b'{"kind": "warning", "global_step": true, "text": ""}',
    b'{"kind": "warning", "global_step": -1, "text": ""}',
    b'{"kind": "warning", "global_step": NaN, "text": ""}',
    b'{"kind": "other", "global_step": 1}',
    b"[" * 10_000,
    b'{"kind": "warning", "global_step": 1, "text": "' + b"x" * 3_000_000 + b'"}',
    b"9" * 5000,
]


def step(number: int) -> dict:
    found = {"kind": "step", "epoch": 0, "step": number - 1, "global_step": number, "loss": 2.0, "terms": {"a": None}}
    return found | {"gradient_norm": None, "lr": {"new": 1}, "images_per_s": 9.0, "data_wait_share": 0.1, "more": [1]}


def record(number: int) -> StepRecord:
    return StepRecord(**step(number))


def lines(*records: dict) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def test_odd_lines_are_passed_over_and_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = lines(step(1)) + b"\n".join(ODD) + b"\n" + lines(step(2), step(3)) + b'{"kind": "st'
    path.write_bytes(whole)
    assert list(read_metrics(path)) == [record(1), record(2), record(3)]
    writer = MetricsWriter(path, resume_at=2)
    assert path.read_bytes() == lines(step(1), step(2))
    kept = [other for other in tmp_path.iterdir() if other != path]
    assert [other.read_bytes() for other in kept] == [whole]
    assert kept[0].name in str(writer.said)


def test_a_line_cut_by_a_kill_is_no_damage(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(lines(step(1)) + b'{"kind": "st')
    assert MetricsWriter(path, resume_at=5).said is None
    assert [other.name for other in tmp_path.iterdir()] == ["metrics.jsonl"]
    path.write_bytes(lines(step(1))[:-1])
    writer = MetricsWriter(path, resume_at=5)
    writer.write(record(2))
    assert path.read_bytes() == lines(step(1), record(2).model_dump(exclude_unset=True))


def test_a_long_line_has_no_record_in_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"x" * (MOST_LINE_BYTES + 1) + lines(step(1), step(2)))
    assert list(read_metrics(path)) == [record(2)]


def test_no_room_for_a_line_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"metrics\.jsonl"):
        MetricsWriter(tmp_path / "absent" / "metrics.jsonl").write(record(1))


@pytest.mark.parametrize("text", ["", "{", "null", "{}", "[3]", '[{"gpus": 3}]', '[{"world_size": true}]', "[" * 9999])
def test_a_damaged_environment_is_kept_aside(tmp_path, text):
    path = tmp_path / "environment.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"environment\.json"):
        read_starts(path)
    assert "environment-damaged.json" in str(add_start(path, Start(**START)))
    assert (tmp_path / "environment-damaged.json").read_text() == text
    path.write_text(text)
    assert "environment-damaged-1.json" in str(add_start(path, Start(**START)))
    assert [start.command for start in read_starts(path)] == ["train.py"]


def test_starts_are_added_and_nothing_of_the_older_ones_is_lost(tmp_path):
    path = tmp_path / "environment.json"
    older = {"command": "older", "of a later version": [1]}
    path.write_text(json.dumps([older]))
    assert add_start(path, Start(**START)) is None
    assert json.loads(path.read_text()) == [older, START]
    assert read_starts(path)[0].gpus == []


def mutated(folder: Path, count: int, seed: int) -> None:
    metrics, environment = folder / "metrics.jsonl", folder / "environment.json"
    scores = {"kind": "eval", "epoch": 1, "global_step": 2, "split": "test", "rank1": 0.5, "mAP": 0.5, "mINP": 0.5}
    whole = lines(step(1), step(2), scores, {"kind": "warning", "global_step": 2, "text": "w"})
    for at in range(count):
        metrics.write_bytes(mutate(whole, seed, at)[1])
        records = list(read_metrics(metrics))
        if at % 50 == 0:
            draw_curves(records)
        MetricsWriter(metrics, 1)
        for kept in folder.glob("metrics-*"):
            kept.unlink()
    for at in range(count):
        environment.write_bytes(mutate(json.dumps([START, START], indent=1).encode(), seed, at)[1])
        add_start(environment, Start(**START))
        read_starts(environment)
        for kept in folder.glob("environment-*"):
            kept.unlink()


def test_damaged_files_are_read_as_far_as_they_go(tmp_path):
    mutated(tmp_path, 100, seed=1)


@pytest.mark.long
def test_many_damaged_files_are_read_as_far_as_they_go(tmp_path):
    mutated(tmp_path, 2500, seed=2)


def config_of(run: Path):
    return load_config(DEMO, [f"run={run}", "data.shards=s"])


def opened(run: Path, resume: bool = False) -> None:
    with open_folder(config_of(run), resume):
        record_start(config_of(run))


@pytest.mark.parametrize(
    "name", ["config.yaml", "metrics.jsonl", "run.log", "environment.json", ".lock", "report.html"]
)
def test_a_folder_in_place_of_a_file_is_named(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        opened(tmp_path, resume=name == "config.yaml")


@pytest.mark.parametrize("name", ["checkpoints", "ranks", "results", "watch"])
def test_a_file_in_place_of_a_folder_is_named_and_stays(tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(InputError, match=name):
        opened(tmp_path)
    assert (tmp_path / name).read_text() == "precious"


def test_places_where_no_run_can_be(tmp_path):
    (tmp_path / "file").write_text("precious")
    for run in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/no/run"), tmp_path / ("x" * 300)):
        with pytest.raises(InputError):
            opened(run)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_run_that_is_being_written_is_left_alone(tmp_path):
    with locked(tmp_path / ".lock"), pytest.raises(InputError, match="another process"):
        opened(tmp_path)


def test_every_older_configuration_stays(tmp_path):
    opened(tmp_path)
    for text in ("one", "two"):
        (tmp_path / "config.yaml").write_text(text)
        opened(tmp_path, resume=True)
    assert sorted(path.read_text() for path in tmp_path.glob("config-*.yaml")) == ["one", "two"]
