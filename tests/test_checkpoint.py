"""Checkpoints are whole or not there, whatever moment a kill chooses."""

import json
import os
import shutil
from pathlib import Path

import pytest

from perf.attacks.mutations import mutate
from tacaf import checkpoint, trust
from tacaf.documents import seal
from tacaf.train.state import SavedFacts, TrainState
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


@pytest.mark.parametrize(
    "damage", ["cut", "change", "remove", "link", "folder", "one more", "no manifest", "bad manifest", "another value"]
)
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
    elif damage == "link":
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    elif damage == "folder":
        file.unlink()
        file.mkdir()
    elif damage == "one more":
        (last / "part" / "more.pt").write_text("not listed")
    elif damage == "another value":
        manifest = last / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"seed": 1', '"seed": 2'))
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
    with pytest.raises(InputError, match=r"seed: .* 1, .* 2.*model: .* None"):
        checkpoint.refuse_other(json.loads('{"seed": 1}'), {"seed": 2, "model": "x"}, path)


@pytest.mark.parametrize(
    "change",
    [
        {"files": {}},
        {"files": []},
        {"files": {"weights.bin": {"bytes": 7}}},
        {"files": {"weights.bin": {"bytes": True, "sha256": "0" * 64}}},
        {"files": {"../weights.bin": {"bytes": 7, "sha256": "0" * 64}}},
        {"files": {"/etc/passwd": {"bytes": 7, "sha256": "0" * 64}}},
        {"files": {".hidden": {"bytes": 7, "sha256": "0" * 64}}},
        {"facts": 3},
        {"facts": None},
        {"more": 1},
        {"format": "tacaf"},
        {"format_version": 2},
    ],
)
def test_a_manifest_of_another_form_counts_as_damaged(tmp_path, change):
    saved(tmp_path, 1)
    manifest = saved(tmp_path, 2) / "manifest.json"
    whole = {**json.loads(manifest.read_text()), **change, "seal": "0" * 64}
    manifest.write_text(seal(json.dumps(whole)))
    said: list[str] = []
    assert checkpoint.newest_whole(tmp_path, said.append) == tmp_path / "step-00000001"
    assert len(said) == 1
    assert "manifest.json" in said[0]


def test_facts_of_another_form_count_as_damaged(tmp_path):
    for step, ranks in ((1, 1), (2, True)):
        temporary = tmp_path / checkpoint.temporary_tag(step)
        temporary.mkdir()
        (temporary / "weights.bin").write_text("weights")
        state = TrainState(step=step, global_step=step)._asdict()
        checkpoint.commit(tmp_path, step, {"ranks": ranks, "state": state}, keep=9)
    said: list[str] = []
    assert checkpoint.newest_whole(tmp_path, said.append, SavedFacts) == tmp_path / "step-00000001"
    assert "ranks" in said[0]


def test_a_manifest_without_a_seal_counts_as_damaged(tmp_path):
    manifest = saved(tmp_path, 1) / "manifest.json"
    whole = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({"facts": whole["facts"], "files": whole["files"]}, indent=1))
    assert newest(tmp_path) is None


def test_other_names_are_not_checkpoints_and_stay(tmp_path):
    names = ["step-00000009 (copy)", "step-9", "step-00000008.old"]
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000007").write_text("a file")
    saved(tmp_path, 1, keep=1)
    path = saved(tmp_path, 2, keep=1)
    assert newest(tmp_path) == path
    assert all((tmp_path / name).is_dir() for name in names)
    assert not (tmp_path / "step-00000001").exists()
    assert (tmp_path / "step-00000007").is_file()


def test_steps_are_ordered_by_number(tmp_path):
    for step in (99_999_999, 100_000_000):
        path = saved(tmp_path, step)
    assert newest(tmp_path) == path


@pytest.mark.parametrize("best", [b"\xff\xfe", b"", b"../x", b"x" * 10_000, None])
def test_nothing_is_dropped_where_best_does_not_say_which_it_is(tmp_path, best):
    saved(tmp_path, 1, keep=1)
    (tmp_path / "best").mkdir() if best is None else (tmp_path / "best").write_bytes(best)
    saved(tmp_path, 2, keep=1)
    assert len(checkpoint.steps_in(tmp_path)) == 2


def test_leftovers_that_are_links_are_removed_and_not_followed(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".tmp-x").symlink_to(tmp_path / "precious")
    checkpoint.clear_temporary(tmp_path / "checkpoints")
    assert not os.path.lexists(tmp_path / "checkpoints" / ".tmp-x")
    assert (tmp_path / "precious").is_dir()


def test_ones_own_checkpoint_may_be_moved_and_copied(tmp_path):
    path = saved(tmp_path / "one", 1)
    checkpoint.refuse_strange(path)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    checkpoint.refuse_strange(tmp_path / "two" / path.name)


def test_without_the_key_it_must_lie_where_it_was_written(tmp_path, monkeypatch):
    """As in a container whose home does not outlive it."""
    path = saved(tmp_path / "one", 1)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another home"))
    checkpoint.refuse_strange(path)
    (tmp_path / "one").rename(tmp_path / "moved")
    for strange in (tmp_path / "two" / path.name, tmp_path / "moved" / path.name):
        with pytest.raises(InputError, match="--trust"):
            checkpoint.refuse_strange(strange)


def test_what_was_changed_is_not_ones_own(tmp_path):
    """Whoever changes a file can write a manifest that fits, but not sign it."""
    path = saved(tmp_path / "one", 1)
    made = checkpoint.manifest_of(path)
    forged = made.model_copy(update={"facts": {"seed": 2}, "seal": None})
    (path / "manifest.json").write_text(forged.to_json())
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    with pytest.raises(InputError, match="--trust"):
        checkpoint.refuse_strange(tmp_path / "two" / path.name)


def test_another_users_checkpoint_is_refused_wherever_it_lies(tmp_path, monkeypatch):
    path = saved(tmp_path, 1)
    monkeypatch.setattr(trust.os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(InputError, match=r"another user.*--trust"):
        checkpoint.refuse_strange(path)


@pytest.mark.parametrize("spoiled", ["readable by others", "short", "a folder"])
def test_a_key_that_is_none_is_made_anew(tmp_path, monkeypatch, spoiled):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    first = trust.sign(b"content")
    key = tmp_path / "tacaf" / "key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert trust.sign(b"content") == first
    if spoiled == "readable by others":
        key.chmod(0o644)
    elif spoiled == "short":
        key.write_text("")
    else:
        key.unlink()
        key.mkdir()
    assert not trust.signed(b"content", first)
    again = trust.sign(b"content")
    assert again is None if spoiled == "a folder" else trust.signed(b"content", again)


def test_without_a_home_nothing_is_signed_and_nothing_fails(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file" / "below"))
    path = saved(tmp_path / "run", 1)
    assert checkpoint.manifest_of(path).signature is None
    checkpoint.refuse_strange(path)


def mutated(folder: Path, count: int, seed: int) -> None:
    """Every damaged manifest counts as damaged."""
    saved(folder, 1)
    manifest = saved(folder, 2) / "manifest.json"
    whole = manifest.read_bytes()
    for number in range(count):
        what, data = mutate(whole, seed, number)
        manifest.write_bytes(data)
        assert newest(folder) != manifest.parent, what


def test_a_damaged_manifest_is_noticed(tmp_path):
    mutated(tmp_path, 200, seed=1)


@pytest.mark.long
def test_every_damaged_manifest_is_noticed(tmp_path):
    mutated(tmp_path, 10_000, seed=2)
