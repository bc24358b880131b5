"""Checkpoints are whole or not there, whatever moment a kill chooses."""

import json
from pathlib import Path

import pytest

from tacaf import checkpoint
from tacaf.vocabulary import InputError


def saved(folder: Path, step: int, text: str = "weights", keep: int = 9) -> Path:
    temporary = folder / checkpoint.temporary_tag(step)
    (temporary / "part").mkdir(parents=True)
    (temporary / "part" / "weights.bin").write_text(text)
    return checkpoint.commit(folder, step, {"seed": 1, "note": text}, keep)


def newest(folder: Path) -> Path | None:
    return checkpoint.newest_whole(folder, warn=lambda text: None)


def test_the_newest_whole_one_is_found_and_old_ones_go(tmp_path):
    for step in (1, 2, 3):
        saved(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000002", "step-00000003"]
    assert newest(tmp_path) == tmp_path / "step-00000003"
    assert (tmp_path / "latest").read_text() == "step-00000003\n"


@pytest.mark.parametrize("damage", ["cut", "change", "remove", "no manifest", "bad manifest"])
def test_a_damaged_one_is_named_and_passed_over(tmp_path, damage):
    saved(tmp_path, 1)
    last = saved(tmp_path, 2)
    file = last / "part" / "weights.bin"
    if damage == "cut":
        file.write_text("we")
    elif damage == "change":
        file.write_text("weightS")
    elif damage == "remove":
        file.unlink()
    elif damage == "no manifest":
        (last / "manifest.json").unlink()
    else:
        (last / "manifest.json").write_text("{")
    said: list[str] = []
    assert checkpoint.newest_whole(tmp_path, said.append) == tmp_path / "step-00000001"
    assert "step-00000002 is damaged" in said[0]


def test_a_kill_in_mid_save_leaves_the_one_before(tmp_path):
    saved(tmp_path, 1)
    half = tmp_path / checkpoint.temporary_tag(2)
    half.mkdir()
    (half / "weights.bin").write_text("we")
    assert newest(tmp_path) == tmp_path / "step-00000001"
    checkpoint.clear_temporary(tmp_path)
    assert not half.exists()


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_saving_a_step_again_loses_it_at_no_moment(tmp_path, monkeypatch, renames):
    """A kill after the first, the second, or no rename: the old or the new one is there, whole."""
    saved(tmp_path, 1, "old", keep=1)
    real, done = Path.rename, []

    def rename(self, target):
        if len(done) == renames and "step-" in self.name:
            raise KeyboardInterrupt
        done.append(target)
        return real(self, target)

    (tmp_path / ".tmp-step-00000001").mkdir()
    (tmp_path / ".tmp-step-00000001" / "weights.bin").write_text("new")
    checkpoint.write_whole(tmp_path / "before", "a rename of a file does not count")
    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(checkpoint, "write_whole", lambda path, text: path.write_text(text))
    if renames < 2:
        with pytest.raises(KeyboardInterrupt):
            checkpoint.commit(tmp_path, 1, {"note": "new"}, keep=1)
    else:
        checkpoint.commit(tmp_path, 1, {"note": "new"}, keep=1)
    monkeypatch.undo()
    checkpoint.mend(tmp_path)
    assert not list(tmp_path.glob(".old-*"))
    assert checkpoint.facts_of(newest(tmp_path))["note"] == ("new" if renames == 2 else "old")


def test_every_difference_is_named(tmp_path):
    path = saved(tmp_path, 1)
    checkpoint.refuse_other({"seed": 1}, {"seed": 1}, path)
    with pytest.raises(InputError, match=r"seed: the checkpoint has 1, this run 2.*model: the checkpoint has None"):
        checkpoint.refuse_other(json.loads('{"seed": 1}'), {"seed": 2, "model": "x"}, path)
