"""Reading files within a limit, their hashes, and names as errors show them."""

import errno
import os
from pathlib import Path

import pytest

from tacaf.files import (
    path_of,
    read_bytes,
    reason_of,
    sha256_of,
    shown,
)
from tacaf.vocabulary import InputError


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "endless", "link to itself", "NUL", "long", "too large"])
def test_reading_what_is_no_plain_file_within_the_limit(tmp_path, kind):
    path = tmp_path / "in"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "too large":
        path.write_bytes(bytes(101))
    elif kind != "missing":
        path = Path("a\0in" if kind == "NUL" else "in" * 3000)
    with pytest.raises(InputError, match="in"):
        read_bytes(path, 100)


def test_reading_a_file_whose_size_is_not_told_in_advance():
    with pytest.raises(InputError, match="more than 5 bytes"):
        read_bytes(Path("/proc/self/status"), 5)
    assert read_bytes(Path("/proc/self/status"), 10**6)


def test_hash(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain name.jpg", "plain name.jpg"),
        ("Größe ± 猫 שלום", "Größe ± 猫 שלום"),
        (os.fsdecode(b"a\xffb"), "a\\xffb"),
        (b"a\xffb", "a\\xffb"),
        (Path(os.fsdecode(b"\x80")), "\\x80"),
        ("a\nb\r\t\x1b[31m\x7f", "a\\nb\\r\\t\\x1b[31m\\x7f"),
        ("user\u202egpj.exe\u200f\u2066", "user\\u202egpj.exe\\u200f\\u2066"),
        ("\ufeff\u2028\xa0\xad", "\\ufeff\\u2028\\xa0\\xad"),
        ("\ud800\U000e0001", "\\ud800\\U000e0001"),
    ],
)
def test_names_for_people(name, text):
    assert shown(name) == text
    shown(name).encode()


def test_a_tilde_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert path_of("~/x") == Path("/home/me/x")
    assert path_of("a~/~x") == Path("a~/~x")
    assert path_of(os.fsdecode(b"a\xff")) == Path(os.fsdecode(b"a\xff"))
    for text in ("", "a\0b", "~no-such-user-here/x", "\ud800"):
        with pytest.raises(InputError):
            path_of(text)


def test_reasons_read_as_the_end_of_a_sentence():
    assert reason_of(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) == "no space left on device"
    assert reason_of(ValueError("NaN is no number")) == "NaN is no number"
    assert reason_of(ValueError()) == "ValueError"
