"""Configurations that were not meant: every one is refused in one line that names the key, or means the same thing."""

import json
import os
from pathlib import Path

import pytest

from perf.attacks.mutations import mutate
from tacaf.train.config import dump_config, load_config
from tacaf.train.config_file import MOST_BYTES
from tacaf.vocabulary import InputError
from tests.train.test_config import CONFIGS, DEMO

SHIPPED = json.loads(Path(__file__).with_name("shipped_settings.json").read_text())
BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 8)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_shipped_files_mean_what_they_always_meant(path):
    assert json.loads(json.dumps(load_config(path, []).effective())) == SHIPPED[path.name]


def refused(*overrides: str) -> str:
    """The one line that these overrides of the demo's file end in."""
    with pytest.raises(InputError) as found:
        load_config(DEMO, list(overrides))
    assert len(str(found.value)) < 1000
    return str(found.value)


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("seed=true", ("seed", "True")),
        ("seed=1.5", ("seed", "1.5")),
        ("seed='3'", ("seed", "'3'")),
        ("train.epochs=1e2", ("train.epochs", "1e2")),
        ("train.epochs=2000000", ("train.epochs", "2000000")),
        ("train.channels_last=1", ("train.channels_last", "1")),
        ("optim.new_rate=true", ("optim.new_rate", "True")),
        ("optim.new_rate='0.1'", ("optim.new_rate", "'0.1'")),
        ("optim.new_rate=.inf", ("optim.new_rate", ".inf")),
        ("optim.new_rate=1e400", ("optim.new_rate", "inf")),
        ("loss.margin=.nan", ("loss.margin", ".nan")),
        ("loss.margin=1e9", ("loss.margin", "1000000000")),
        ("train.stall_limit_s=1e300", ("train.stall_limit_s",)),
        (f"seed={'9' * 400}", ("seed", "400 digits")),
        (f"seed={'9' * 5000}", ("seed", "5000 digits")),
        ("model.backbone.blocks=[1, -1, 1, 1]", ("model.backbone.blocks[1]", "-1")),
        ("model.backbone.blocks=[1, 1]", ("model.backbone.blocks", "4")),
        ("model.cmaam.layers=[4, 3]", ("model.cmaam.layers", "[4, 3]")),
        ("model.cmaam.matching=deviations", ("model.cmaam", "matching", "deviations")),
        ("model.kernels=triton", ("model.kernels", "triton")),
        ("model.ipcam.levels=[1, 3, 99999]", ("model.ipcam.levels[2]", "99999")),
        ("data.augment.erase_area=[0.4, 0.02]", ("data.augment.erase_area", "[0.4, 0.02]")),
        ("data.split=../train", ("data.split", "../train")),
        ("train.watch=[csv_monitor, tensorbord]", ("train.watch[1]", "tensorbord", "'tensorboard'")),
        ("train.watch=tensorboard", ("train.watch", "a list")),
        ("evaluation.modes=[]", ("evaluation.modes",)),
        ("evaluation.shots=[]", ("evaluation.shots",)),
        ("evaluation.modes=[all_search, outdoor]", ("evaluation.modes[1]", "outdoor", "indoor_search")),
        ("evaluation.protocol=regd", ("evaluation.protocol", "'regdb'")),
        ("evaluation.locations={1: x}", ("evaluation.locations.1", "'x'")),
        ("optim.milestones={a: 0.1}", ("optim.milestones.a", "'a'")),
        ("optim.milestones={20: x}", ("optim.milestones.20", "'x'")),
        ("deepspeed=3", ("deepspeed", "3")),
        ("deepspeed.zero_optimization=3", ("deepspeed.zero_optimization", "3")),
        ("deepspeed.zero_optimization.offload_optimizer=true", ("zero_optimization.offload_optimizer", "True")),
        ("deepspeed.zero_optimization.stage=true", ("deepspeed.zero_optimization.stage", "True")),
        ("deepspeed.wandb=[1]", ("deepspeed.wandb", "[1]")),
        ("train=null", ("train", "None")),
        ("data.remote.options=3", ("data.remote.options", "3")),
        ("run=2024", ("run", "2024")),
        ("run=", ("run", "path")),
        ("run=''", ("run", "path")),
        ('run="a\\0b"', ("run", "path")),
        ("run=~nobody-of-this-name/x", ("run", "~nobody-of-this-name")),
        ("model=!!python/object/apply:os.system [true]", ("model", "!!python/object/apply:os.system")),
        ("run=!!binary aGFsbG8=", ("run", "!!binary")),
        ("model=&a [*a]", ("model", "32")),
        ("model={bn: sync, bn: local}", ("model.bn", "lines 1 and 1")),
        (f"model={'[' * 100_000}", ("model", "32")),
        ("model=[1", ("model", "YAML")),
        ("a..b=3", ("a", "no such key")),
        ("\0=3", ("no such key",)),
    ],
)
def test_what_cannot_be_meant_is_named(override, names):
    said = refused(override)
    for name in names:
        assert name in said


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("base: 3", ("base", "3")),
        ("base: [a]", ("base", "a list")),
        ("base: nowhere.yaml", ("nowhere.yaml",)),
        ("run: a\nseed: 1\nrun: b", ("run", "lines 1 and 3")),
        ("optim: {milestones: {20: 0.1, '20': 0.2}}", ("optim.milestones.20",)),
        (BOMB, ("20,000",)),
        ("a: &a\n  b: *a", ("32",)),
        ("a: &a\n  <<: *a", ("32",)),
        ("\n".join("  " * depth + "a:" for depth in range(200)), ("32",)),
        ("run: a\n\tseed: 1", ("line 2", "YAML")),
        ("run: a\n---\nrun: b", ("line 2", "YAML")),
        ("? [a]\n: b", ("line 1", "key")),
        ("run: !!set {a}", ("run", "!!set")),
        (b"run: \xff\xfe", ("UTF-8",)),
        (b"run: a\x00b", ("YAML",)),
        ("a: b\n" * MOST_BYTES, ("bytes",)),
        ("", ("a mapping", "nothing")),
    ],
)
def test_files_that_are_no_configuration(tmp_path, monkeypatch, text, names):
    monkeypatch.chdir(tmp_path)  # the whole path of a parallel run's folder is shortened in the error
    path = Path("made.yaml")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as found:
        load_config(path, [])
    for name in ("made.yaml", *names):
        assert name in str(found.value)


def test_files_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero"), Path("x" * 5000), Path("a\0b")):
        with pytest.raises(InputError):
            load_config(path, [])


def test_dates_and_times_are_names(tmp_path):
    path = tmp_path / "made.yaml"
    for name in ("2024-01-31", "2024-02-30", "2024-13-45 25:61:00", "12:30"):
        path.write_text(f"run: {name}\ndata: {{shards: s}}\n")
        assert load_config(path, []).run == Path(name)


def test_a_home_folder_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config(DEMO, ["run=~/run", "data.shards=~/shards", "train.weights=~/w.pth"])
    assert (config.run, config.data.shards, config.train.weights) == (
        tmp_path / "run",
        str(tmp_path / "shards"),
        tmp_path / "w.pth",
    )
    assert load_config(DEMO, ["data.shards=s3://bucket/~/x"]).data.shards == "s3://bucket/~/x"


def test_whole_numbers_are_rates_and_powers_of_ten_are_numbers():
    config = load_config(
        DEMO, ["optim.new_rate=1e-3", "loss.dt=2", "optim.milestones={3: 1e-1}", "evaluation.rerank=[20, 6, 3e-1]"]
    )
    assert (config.optim.new_rate, config.loss.dt, config.optim.milestones) == (0.001, 2.0, {3: 0.1})
    assert config.evaluation.rerank == (20, 6, 0.3)


def test_anchors_and_merges_still_serve(tmp_path):
    path = tmp_path / "made.yaml"
    path.write_text(
        "run: r\ndata:\n  shards: s\n  plan: &plan {pair_group: 2}\nmodel:\n  ipcam: {<<: {rounds: 3}, rounds: 4}\n"
    )
    assert load_config(path, []).model.ipcam.rounds == 4


def mutated(path: Path, count: int, seed: int) -> int:
    """How many of so many damaged configurations are refused; none in another way than by InputError."""
    whole = dump_config(load_config(DEMO, [])).encode()
    as_json = json.dumps(load_config(DEMO, []).model_dump(mode="json")).encode()  # which is YAML, too
    times = 0
    for number in range(count):
        path.write_bytes(mutate(as_json if number % 2 else whole, seed, number)[1])
        try:
            load_config(path, [])
        except InputError:
            times += 1
    return times


def test_damaged_files_are_refused_or_mean_something(tmp_path):
    assert mutated(tmp_path / "made.yaml", 60, seed=1) > 20


@pytest.mark.long
def test_many_damaged_files_are_refused_or_mean_something(tmp_path):
    assert mutated(tmp_path / "made.yaml", 2500, seed=2) > 1000
