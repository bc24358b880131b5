"""A training is resumed only where every value that has a part in it is the same, and signals reach the trainings."""

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from launch.study.trainings import SCRIPT, Training, run_all
from tacaf.checkpoint import refuse_other
from tacaf.data.index import ShardIndex
from tacaf.train.config import dump_config, load_config
from tacaf.train.state import must_match
from tacaf.vocabulary import InputError
from tests.processes import wait_until

DEMO = SCRIPT.parent / "configs" / "demo.yaml"
NO_CMAAM, NO_IPCAM = "model.cmaam.enabled=false", "model.ipcam.enabled=false"


def begin(folder, *settings) -> None:
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(Training(folder, DEMO, settings).config()))


@pytest.mark.parametrize(
    ("before", "now", "name"),
    [
        ((), ("loss.dt=7",), "loss.dt"),
        ((), ("seed=3",), "seed"),
        ((), (NO_CMAAM,), "model.cmaam.enabled"),
        ((NO_CMAAM,), (NO_CMAAM, "loss.margin=0.5"), "loss.margin"),
        # IPCAM's pair stage takes its pairs by it
        ((NO_CMAAM,), (NO_CMAAM, "model.cmaam.direction=visible_to_infrared"), "model.cmaam.direction"),
        ((NO_IPCAM,), (NO_IPCAM, "loss.dt=7"), "loss.dt"),
    ],
)
def test_another_value_is_refused_by_name(tmp_path, before, now, name):
    begin(tmp_path / "run", *before)
    with pytest.raises(InputError, match=f"{name} = "):
        Training(tmp_path / "run", DEMO, now).refuse_other_settings()


@pytest.mark.parametrize(
    "idle",
    [
        (NO_CMAAM, "loss.dt=7", "loss.ic=0.1", "loss.dense_margin=1", "model.cmaam.beta=3"),
        (NO_IPCAM, "loss.part=2", "loss.pair=3", "model.ipcam.node_width=16", "model.ipcam.ring=false"),
    ],
)
def test_values_of_a_module_that_is_off_are_no_difference(tmp_path, idle):
    begin(tmp_path / "run", idle[0])
    Training(tmp_path / "run", DEMO, idle).refuse_other_settings()


def test_what_leaves_weights_and_scores_as_they_are_is_no_difference(tmp_path):
    begin(tmp_path / "run")
    Training(tmp_path / "run", DEMO, ("data.threads=7", "train.keep=5", "train.save_every=9")).refuse_other_settings()
    with pytest.raises(InputError, match=r"train\.start_from = None"):
        Training(tmp_path / "run", DEMO, ("train.start_from=a.safetensors",)).refuse_other_settings()


def test_a_new_folder_takes_any_values(tmp_path):
    Training(tmp_path / "run", DEMO, ("seed=9",)).refuse_other_settings()


def test_a_checkpoint_is_compared_by_the_same_rule(sysu_shards):
    index = ShardIndex.open(sysu_shards)

    def facts(*settings) -> dict:
        return must_match(load_config(DEMO, ["run=r", f"data.shards={sysu_shards}", *settings]), index)

    assert facts(NO_CMAAM) == facts(NO_CMAAM, "loss.dt=7")
    assert facts() != facts("loss.dt=7")
    assert facts() == facts("evaluation.every=7", "train.keep=9", "data.threads=1", "model.kernels=reference")
    with pytest.raises(InputError, match=r"model\.cmaam\.mask: .*'norm'.*'deviation'"):
        refuse_other(facts("model.cmaam.mask=norm"), facts("model.cmaam.mask=deviation"), Path("step-1"))


SAVES = """
import os, pathlib, signal, sys, time
def save(*_):
    pathlib.Path("saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
pathlib.Path("session").write_text(str(os.getsid(0)))
pathlib.Path("ready").touch()
time.sleep(600)
"""


@pytest.mark.slow
def test_ctrl_c_reaches_us_alone_and_the_trainings_are_asked_to_save(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Training, "command", lambda one, ranks: [sys.executable, "-c", SAVES])

    def press() -> None:
        wait_until((tmp_path / "ready").exists)
        os.kill(os.getpid(), signal.SIGINT)

    pressing = threading.Thread(target=press)
    pressing.start()
    with pytest.raises(KeyboardInterrupt):
        run_all([Training(tmp_path / "run", DEMO, ())], lambda one, status: None)
    pressing.join()
    assert (tmp_path / "saved").exists()
    assert int((tmp_path / "session").read_text()) != os.getsid(0)


FINISHES = "import pathlib, sys; pathlib.Path(sys.argv[1]).mkdir(); (pathlib.Path(sys.argv[1]) / 'report.html').touch()"


@pytest.mark.slow
def test_what_follows_a_training_runs_in_its_place_and_its_status_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(Training, "command", lambda one, ranks: [sys.executable, "-c", FINISHES, str(one.folder)])
    new, old, whole, broken = (Training(tmp_path / name, DEMO, ()) for name in ("new", "old", "whole", "broken"))
    for one in (old, whole):
        one.folder.mkdir()
        (one.folder / "report.html").touch()

    def then(one: Training) -> list[str] | None:
        if one == whole:
            return None
        last = "sys.exit(3)" if one == broken else "pathlib.Path(sys.argv[1], 'embedded').touch()"
        return [sys.executable, "-c", f"import pathlib, sys; {last}", str(one.folder)]

    ends = dict[Training, int]()
    assert run_all([new, old, whole, broken], ends.__setitem__, parallel=2, then=then)
    assert ends == {new: 0, old: 0, whole: 0, broken: 3}
    assert [(one.folder / "embedded").exists() for one in ends] == [one in (new, old) for one in ends]


@pytest.mark.slow
def test_nothing_follows_a_training_once_the_command_was_told_to_stop(tmp_path, monkeypatch):
    """A training that ends while all are told to stop is finished, but what follows it waits for the next time."""
    tells = FINISHES + "; import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(600)"
    quiet = f"import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); {tells}"
    monkeypatch.setattr(Training, "command", lambda one, ranks: [sys.executable, "-c", quiet, str(one.folder)])
    ends = list[int]()
    follows = [sys.executable, "-c", f"open({str(tmp_path / 'embedded')!r}, 'w')"]
    one = Training(tmp_path / "run", DEMO, ())
    assert not run_all([one], lambda _, status: ends.append(status), then=lambda _: follows)
    assert ends == [75]
    assert not (tmp_path / "embedded").exists()
