"""Locks between processes and threads."""

import os
import threading
from pathlib import Path

import pytest

from tacaf.files import (
    locked,
)
from tacaf.vocabulary import InputError


def test_a_lock_is_held_by_one(tmp_path):
    path = tmp_path / "new" / "lock"
    with locked(path):
        with pytest.raises(InputError, match="locked"), locked(path, wait=False):
            pass
        waiting = threading.Thread(target=lambda: locked(path).__enter__())
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive()
    waiting.join()


@pytest.mark.parametrize("kind", ["folder", "below a file", "NUL"])
def test_a_lock_that_cannot_be_made(tmp_path, kind):
    (tmp_path / "file").touch()
    path = {"folder": tmp_path, "below a file": tmp_path / "file" / "lock", "NUL": Path("a\0b")}[kind]
    with pytest.raises(InputError), locked(path):
        pass


def test_a_lock_leaves_no_file_and_holds_while_others_come_and_go(tmp_path):
    path, held = tmp_path / "lock", []

    def hold() -> None:
        for _ in range(50):
            with locked(path):
                held.append(1)
                assert len(held) == 1
                held.pop()

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not held
    assert not list(tmp_path.iterdir())


def test_a_lock_through_a_link(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with locked(tmp_path / "lock"):
        pass


def test_a_lock_on_a_pipe_does_not_wait_for_a_reader(tmp_path):
    os.mkfifo(tmp_path / "lock")
    with locked(tmp_path / "lock", wait=False):
        pass
