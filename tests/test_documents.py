"""Documents from outside: what the parser refuses before and after it builds anything, and the seal."""

import json
import random
from typing import Any, Literal

import pytest

from tacaf.documents import MOST_BYTES, Count, Document, SafeName, Sha256, check_seal, parse, read_document, seal
from tacaf.vocabulary import InputError


class Part(Document):
    name: SafeName
    share: float


class Whole(Document):
    """A document as the project has them."""

    format: Literal["test"]
    format_version: Literal[1, 2]
    count: Count
    parts: tuple[Part, ...] = ()
    sha256: Sha256 | None = None
    free: Any = None
    seal: str = ""


GOOD = {"format": "test", "format_version": 2, "count": 3, "parts": [{"name": "a.b-c_1", "share": 0.5}]}


def with_value(**changes: Any) -> str:
    return json.dumps({**GOOD, **changes})


def test_a_good_one():
    found = parse(json.dumps(GOOD).encode(), Whole, "x.json")
    assert found.parts == (Part(name="a.b-c_1", share=0.5),)
    assert parse(json.dumps(GOOD), Whole, "x.json") == found
    assert parse(with_value(parts=[{"name": "a", "share": 1}]), Whole, "x").parts[0].share == 1.0


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (with_value(count=True), "count"),
        (with_value(count="3"), "count"),
        (with_value(count=3.0), "count"),
        (with_value(count=-1), "count"),
        (with_value(count=2**53), "count"),
        (with_value(count=None), "count"),
        (with_value(parts={}), "parts"),
        (with_value(parts=[{"name": "a", "share": "0.5"}]), "parts.0.share"),
        (with_value(parts=[{"name": "a", "share": True}]), "parts.0.share"),
        (with_value(parts=[{"name": "a"}]), "parts.0.share"),
        *(
            (with_value(parts=[{"name": name, "share": 1}]), "parts.0.name")
            for name in ("", ".", "..", "a/b", "a\\b", "/a", "a\n", "a\0", "ä", "a" * 201, "-a", 5)
        ),
        *((with_value(sha256=text), "sha256") for text in ("", "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n", 0)),
        (with_value(other=1), "other"),
        (with_value(**{"ot\u202eher\n": 1}), "ot\\u202eher\\n"),
    ],
)
def test_a_wrong_field_is_named(text, field):
    with pytest.raises(InputError) as caught:
        parse(text, Whole, "x.json", cure="make it again")
    said = str(caught.value)
    assert said.startswith(f"x.json: {field}: ")
    assert said.endswith("; make it again")
    assert said.isprintable()
    assert len(said) < 300


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"{",
        b"null",
        b"[]",
        b"3",
        b'"text"',
        b"{}",
        b"\xff",
        b"\xef\xbb\xbf{}",
        b"{}{}",
        b"\x00",
        json.dumps(GOOD).encode("utf-16"),
        json.dumps(GOOD).encode() + b"\0",
        b'{"free": NaN}',
        b'{"free": Infinity}',
        b'{"free": -Infinity}',
        b'{"free": 1e999}',
        b'{"free": -1e999}',
        b'{"free": ' + b"9" * 5000 + b"}",
        b'{"free": "\\ud800"}',
        b'{"\\ud800": 1}',
        b'{"count": 1, "count": 1}',
        b'{"count": 1, "c\\u006funt": 1}',
        b'{"free": [{"a": 1, "a": 2}]}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 40 + b"]" * 40,
        b'{"free": ' + b"[" * 31 + b"]" * 31 + b"}",
    ],
)
def test_what_is_no_document(data):
    with pytest.raises(InputError, match=r"^x\.json") as caught:
        parse(data, Whole, "x.json")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_the_deepest_that_is_read():
    deep = json.dumps({**GOOD, "free": 0})
    assert parse(deep.replace('"free": 0', f'"free": {"[" * 30}{"]" * 30}'), Whole, "x")


def test_many_keys_are_judged_at_once():
    """Also the last of 60,000 that stands there twice."""
    text = "{" + ",".join(f'"{number}":1' for number in range(60_000)) + ',"59999":1}'
    with pytest.raises(InputError, match="59999"):
        parse(text, Whole, "x.json")


def test_limits_come_before_reading(tmp_path):
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(InputError, match=r"large\.json"):
        read_document(path, Whole)
    with pytest.raises(InputError, match="at most 10"):
        parse(json.dumps(GOOD), Whole, "x.json", most=10)
    with pytest.raises(InputError, match=r"missing\.json"):
        read_document(tmp_path / "missing.json", Whole)


@pytest.mark.parametrize("version", [0, 3, -1, 10**30])
def test_another_version_says_so_whatever_else_is_in_it(version):
    with pytest.raises(InputError, match="format_version 1 or 2"):
        parse(json.dumps({"format": "test", "format_version": version, "new": []}), Whole, "x.json")


@pytest.mark.parametrize("version", [True, "2", None, 2.0, []])
def test_a_version_of_another_type_is_a_wrong_field(version):
    with pytest.raises(InputError, match="format_version: "):
        parse(with_value(format_version=version), Whole, "x.json")


def sealed() -> bytes:
    return seal(json.dumps({**GOOD, "free": {"seal": "1" * 64}, "seal": "0" * 64}, indent=1)).encode()


def test_a_seal_notices_every_changed_byte():
    data = sealed()
    check_seal(data, "x.json")
    assert parse(data, Whole, "x.json").count == 3
    for place in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            with pytest.raises(InputError, match=r"x\.json"):
                check_seal(bytes(changed), "x.json")


def test_a_seal_notices_what_is_cut_off_added_or_moved():
    data, draw = sealed(), random.Random(0)
    for _ in range(300):
        place, other = sorted(draw.sample(range(len(data)), 2))
        for changed in (data[:place], data[:place] + data[other:], data[:place] + b" " + data[place:], data + b"\n"):
            with pytest.raises(InputError):
                check_seal(changed, "x.json")


def test_without_a_seal():
    for data in (b"", b"{}", json.dumps(GOOD).encode(), b'{"seal": "' + b"0" * 64 + b'"}'):
        with pytest.raises(InputError, match="make it again"):
            check_seal(data, "x.json", cure="make it again")


@pytest.mark.parametrize("tries", [300, pytest.param(10_000, marks=pytest.mark.long)])
def test_damaged_documents_are_refused_or_whole(tries):
    """Random bytes changed, cut and repeated: one printable sentence, or a document that the model allows."""
    data, draw = sealed(), random.Random(1)
    for _ in range(tries):
        changed = bytearray(data)
        for _ in range(draw.randrange(1, 4)):
            place = draw.randrange(len(changed))
            kind = draw.randrange(4)
            if kind == 0:
                changed[place] = draw.randrange(256)
            elif kind == 1:
                del changed[place : place + draw.randrange(1, 40)]
            elif kind == 2:
                changed[place:place] = draw.choice([b"1e999", b"NaN", b"-", b"[" * 50, b"null", b"\xed\xa0\x80", b'"'])
            else:
                changed[place:place] = changed[place : place + draw.randrange(1, 200)]
            changed = changed or bytearray(b"{")
        said = "x.json"
        try:
            parse(bytes(changed), Whole, "x.json")
        except InputError as error:
            said = str(error)
        assert said.isprintable()
        assert said.startswith("x.json")
