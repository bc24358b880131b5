"""A data set from a list: what the columns mean, drawn splits, names, and every way the list can be wrong."""

import csv
import json
from pathlib import Path

import pytest

from shards.__main__ import main
from shards.sources import manifest
from shards.sources.manifest import draw_splits
from shards.verify import verify
from tacaf.vocabulary import InputError
from tests.shards.raw import column, samples, snapshot, write_image

FIELDS = ("path", "pid", "modality", "camid", "split")


def lines(pids=("1", "2", "3", "4")) -> list[dict[str, str]]:
    """Two images of each modality an identity, in no order; half the identities train."""
    found = []
    for place, pid in enumerate(pids):
        for modality, camid in (("rgb", "7"), ("nir", "9")):
            for number in (2, 1):
                path = f"{modality}/{pid}_{number}.jpg"
                split = "train" if place < len(pids) / 2 else "test"
                found.append({"path": path, "pid": pid, "modality": modality, "camid": camid, "split": split})
    return found


def without(name: str, rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != name} for row in rows]


def write(folder: Path, rows: list[dict], jsonl: bool = False) -> Path:
    """The images below `folder`/raw and the list beside it."""
    for seed, row in enumerate(rows):
        write_image(folder / "raw" / row["path"], seed)
    path = folder / ("list.jsonl" if jsonl else "list.csv")
    with path.open("w", newline="") as file:
        if jsonl:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return path


def pack(folder: Path, listed: Path, out: str = "set", **options):
    return manifest.pack(folder / "raw", folder / out, listed, jsonl=listed.suffix == ".jsonl", **options)


def test_the_columns(tmp_path):
    packed = pack(tmp_path, write(tmp_path, lines()[::-1]), name="lab_1")
    assert packed.index.name == "lab_1"
    assert packed.index.splits == {"train": [1, 2], "test": [3, 4]}
    assert packed.index.pid_names is None
    found = samples(tmp_path / "set")
    assert len(found) == 16
    for key, _, image, facts in found:
        folder, name = facts["source"].split("/")
        pid, number = name.removesuffix(".jpg").split("_")
        modality, camid = {"rgb": ("visible", 7), "nir": ("infrared", 9)}[folder]
        assert key == f"{modality}_{int(pid):04d}_c{camid}_000{number}"
        split = "train" if pid in "12" else "test"
        assert facts == {"pid": int(pid), "camid": camid, "modality": modality, "split": split} | {
            "source": facts["source"]
        }
        assert image == (tmp_path / "raw" / facts["source"]).read_bytes()
    assert verify(tmp_path / "set") == []


def test_csv_and_jsonl_are_the_same(tmp_path):
    rows = lines()
    pack(tmp_path, write(tmp_path, rows), "a")
    numbers = [{**row, "pid": int(row["pid"]), "camid": int(row["camid"]), "score": 0.5} for row in rows]
    pack(tmp_path, write(tmp_path, numbers, jsonl=True), "b")
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


def test_a_list_from_a_spreadsheet(tmp_path):
    """A mark at the beginning, Windows line ends, blank lines, spaces, capitals, a column of its own."""
    path = write(tmp_path, lines())
    text = path.read_text().replace("rgb,", "RGB , ").replace("split\r\n", "split,note\r\n\r\n")
    text = text.replace("train\r\n", 'train,"a, b"\r\n').replace("test\r\n", "test,\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert pack(tmp_path, path).index.images == 16


def test_names_are_numbered_in_order_and_kept(tmp_path):
    packed = pack(tmp_path, write(tmp_path, lines(("zoë", "10", "9", "Ann"))))
    assert packed.index.pid_names == {1: "10", 2: "9", 3: "Ann", 4: "zoë"}
    assert packed.index.splits == {"train": [1, 4], "test": [2, 3]}
    assert json.loads((tmp_path / "set/index.json").read_text())["pid_names"]["4"] == "zoë"
    assert {facts["pid"] for *_, facts in samples(tmp_path / "set") if "zoë" in facts["source"]} == {4}


def test_numbers_stay_as_they_are(tmp_path):
    packed = pack(tmp_path, write(tmp_path, lines(("0", "0017", "300", "999999999999999999"))))
    assert packed.index.pid_names is None
    assert set(column(tmp_path / "set", "pid").tolist()) == {0, 17, 300, 999999999999999999}


def test_without_cameras_all_is_camera_0(tmp_path):
    rows = without("camid", lines())
    extra = [{**row, "path": f"again/{row['path']}"} for row in rows]
    pack(tmp_path, write(tmp_path, rows + extra))
    assert set(column(tmp_path / "set", "camid").tolist()) == {0}
    # numbers count along the paths, folders included: again/... before nir/... and rgb/...
    sources = {key: facts["source"] for key, _, _, facts in samples(tmp_path / "set")}
    assert [sources[f"visible_0001_c0_000{n}"] for n in (1, 2, 3, 4)] == [
        "again/rgb/1_1.jpg",
        "again/rgb/1_2.jpg",
        "rgb/1_1.jpg",
        "rgb/1_2.jpg",
    ]


def test_drawn_splits(tmp_path):
    rows = without("split", lines(tuple("abcdefghij")))
    packed = pack(tmp_path, write(tmp_path, rows), "a")
    assert {split: len(pids) for split, pids in packed.index.splits.items()} == {"train": 7, "test": 3}
    assert packed.index.splits == draw_splits(list(range(1, 11)), 0.3, 0, 0)
    assert "seed 0, test share 0.3" in packed.index.source
    header, *others = (tmp_path / "list.csv").read_text().splitlines()
    (tmp_path / "list.csv").write_text("\n".join([header, *others[::-1]]))
    pack(tmp_path, tmp_path / "list.csv", "b")
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b"), "the order of the lines says nothing"
    other = pack(tmp_path, tmp_path / "list.csv", "c", seed=1, test_share=0.5)
    assert len(other.index.splits["test"]) == 5
    assert verify(tmp_path / "c") == []
    empty = [{**row, "split": ""} for row in rows]
    assert pack(tmp_path, write(tmp_path, empty), "d").index.splits == packed.index.splits


def test_the_draw_is_a_pure_function_and_leaves_neither_part_empty():
    drawn = [tuple(draw_splits(list(range(40)), 0.5, 0, seed)["test"]) for seed in range(8)]
    assert len(set(drawn)) == 8
    assert draw_splits([3, 5], 0.001, 0, 4) == draw_splits([3, 5], 0.001, 0, 4)
    for share in (0.001, 0.999):
        assert sorted(map(len, draw_splits(list(range(9)), share, 0, 0).values())) == [1, 8]
    # a draw once made stays: the numbers are part of every result
    assert draw_splits(list(range(10)), 0.3, 0, 0)["test"] == [0, 3, 5]


def test_identities_for_validation_are_drawn_on_request(tmp_path):
    """They come from those that would be for training: the test identities stay, and so does the meaning of a score."""
    rows = without("split", lines(tuple("abcdefghij")))
    packed = pack(tmp_path, write(tmp_path, rows), "a", val_share=0.2)
    assert {split: len(pids) for split, pids in packed.index.splits.items()} == {"train": 5, "val": 2, "test": 3}
    assert sorted(pid for pids in packed.index.splits.values() for pid in pids) == list(range(1, 11))
    assert packed.index.splits["test"] == draw_splits(list(range(1, 11)), 0.3, 0, 0)["test"]
    assert "seed 0, test share 0.3, validation share 0.2" in packed.index.source
    assert verify(tmp_path / "a") == []
    for shares in ((0.001, 0.001), (0.98, 0.01), (0.01, 0.98)):
        assert set(draw_splits([1, 2, 3], *shares, 0)) == {"train", "val", "test"}, "no part is empty"


def _edit(**changes):
    """A change of the third image's line."""
    return lambda rows: rows[2].update(changes)


def _all(name, value):
    return lambda rows: [row.update({name: value}) for row in rows]


# name -> (change of the rows, words of the error)
WRONG = {
    "no path": (_edit(path=""), r":4: expected a path"),
    "no pid": (_edit(pid=" "), r":4: expected a pid"),
    "negative pid": (_edit(pid="-1"), r":4: expected a pid of at least 0 or a name, got -1"),
    "one number twice": (_edit(pid="01"), r"got .*1.*1, which are the same number"),
    "modality": (_edit(modality="depth"), r":4: expected a modality of visible, rgb.*'depth'"),
    "camera with a letter": (_edit(camid="c7"), r":4: expected camid from 0 to 32767, got 'c7'"),
    "negative camera": (_edit(camid="-1"), r":4: expected camid"),
    "camera too large": (_edit(camid="32768"), r":4: expected camid"),
    "split": (_edit(split="query"), r":4: expected a split of train, val, test, got 'query'"),
    "two splits": (_edit(split="test"), r":4: expected pid 1 in one split, got test, and train in .*:2"),
    "split here and there": (
        lambda rows: [row.update(split="") for row in rows if row["pid"] == "2"],
        r":6: expected a split in every line or in none",
    ),
    "duplicate path": (_edit(path="./rgb//1_2.jpg"), r":4: expected every path once, got rgb/1_2.jpg as in .*:2"),
    "absolute path": (
        _edit(path="/etc/x.jpg"),
        r":4: expected a path relative to --root without \.\., got '/etc/x.jpg'",
    ),
    "path upwards": (_edit(path="rgb/../../x.jpg"), r":4: expected a path relative to --root without \.\."),
    "no image": (_edit(path="rgb/notes.txt"), r":4: expected an image \(\.jpg"),
    "missing file": (_edit(path="rgb/none.jpg"), r":4: the image .*rgb/none\.jpg does not exist"),
    "backslashes": (_edit(path="rgb\\1_2.jpg"), r":4: the image .* does not exist; write / between folders"),
    "folder": (_edit(path="folder.jpg"), r":4: the image .*folder\.jpg does not exist"),
    "link outwards": (_edit(path="link.jpg"), r":4: expected a file below .*raw, but link\.jpg is a link"),
    "folder linked outwards": (_edit(path="away/x.jpg"), r":4: expected a file below .*away/x\.jpg is a link"),
    "link in a circle": (_edit(path="circle.jpg"), r":4: expected"),
    "one modality": (_all("modality", "rgb"), r"expected infrared images in split train, found none"),
    "one identity": (_all("pid", "5"), r"in one split"),
}


@pytest.mark.parametrize("jsonl", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_line_is_one_clear_error(tmp_path, name, jsonl):
    change, message = WRONG[name]
    rows = lines()
    write(tmp_path, rows)
    change(rows)
    outside = write_image(tmp_path / "outside/x.jpg", 1)
    (tmp_path / "raw/link.jpg").symlink_to(outside)
    (tmp_path / "raw/away").symlink_to(outside.parent)
    (tmp_path / "raw/circle.jpg").symlink_to("circle.jpg")
    (tmp_path / "raw/folder.jpg").mkdir()
    path = tmp_path / ("bad.jsonl" if jsonl else "bad.csv")
    words = [",".join(FIELDS), *(",".join(row.values()) for row in rows)]
    if jsonl:  # a blank first line, so that both count alike
        words = ["", *(json.dumps(row) for row in rows)]
    path.write_text("\n".join(words) + "\n")
    with pytest.raises(InputError, match=message) as raised:
        pack(tmp_path, path)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "set").exists()


# name -> (the list, words of the error)
FILES = {
    "a.csv": (b"", r"a\.csv: expected lines with path, pid, modality, got none"),
    "b.csv": (b"path,pid,modality\n", r"b\.csv: expected lines with"),
    "c.csv": (b"path,pid,camid\n", r"c\.csv:1: expected a header with path, pid, modality, got no modality"),
    "d.csv": (b"path;pid;modality\n", r"d\.csv:1: expected a header .* comma"),
    "e.csv": (b"path,pid,modality,pid\n", r"e\.csv:1: expected every column once, got pid twice"),
    "f.csv": (b"path,pid,modality\na.jpg,1\n", r"f\.csv:2: expected 3 fields as in the header, got 2"),
    "g.csv": (b'path,pid,modality\n"a.jpg,1,rgb\n', r"g\.csv:2: expected CSV, got"),
    "h.csv": (b"path,pid,modality\na.jpg,\xff\xfe,rgb\n", r"h\.csv:2: expected UTF-8 text"),
    "i.csv": ("path,pid,modality\n".encode("utf-16"), r"i\.csv:1: expected UTF-8 text"),
    "j.csv": (b"path,pid,modality\na\0.jpg,1,rgb\n", r"j\.csv:2: expected"),
    "a.jsonl": (b"\n \n", r"a\.jsonl: expected lines with"),
    "b.jsonl": (b'{"path": "a.jpg"\n', r"b\.jsonl:1: not valid JSON"),
    "c.jsonl": (b'\n["a.jpg", 1, "rgb"]\n', r"c\.jsonl:2: expected a JSON object, got '\[\"a\.jpg"),
    "d.jsonl": (b'{"path": "a.jpg", "pid": 1}\n', r"d\.jsonl:1: expected a modality"),
    "e.jsonl": (b'{"path": "a.jpg", "pid": true, "modality": "ir"}\n', r"e\.jsonl:1: expected pid as text or a whole"),
    "f.jsonl": (b'{"path": "a.jpg", "pid": 1.5, "modality": "ir"}\n', r"f\.jsonl:1: expected pid as text .*got 1\.5"),
    "g.jsonl": (b'{"path": ["a"], "pid": 1, "modality": "ir"}\n', r"g\.jsonl:1: expected path as text"),
    "h.jsonl": (b'{"path": null, "pid": 1, "modality": "ir"}\n', r"h\.jsonl:1: expected path as text"),
    "i.jsonl": (b'{"path": "a.jpg", "pid": "\xff"}\n', r"i\.jsonl:1: expected UTF-8 text"),
    "j.jsonl": (b"[" * 100_000 + b"\n", r"j\.jsonl:1 has 100,000 bytes"),
    "k.csv": (b'path,pid,modality\n"a\nb.jpg",1,rgb\n', r"k\.csv:3: expected a path in plain text, got 'a\\nb\.jpg'"),
    "l.jsonl": (b'{"path": "a.jpg", "pid": "\\ud800", "modality": "ir"}\n', r"l\.jsonl:1: expected a pid in plain"),
    "k.jsonl": (b'{"path": "a\\u0000.jpg", "pid": 1, "modality": "ir"}\n', r"k\.jsonl:1: expected"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_list(tmp_path, name):
    data, message = FILES[name]
    (tmp_path / "raw").mkdir()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message) as raised:
        pack(tmp_path, tmp_path / name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_share": 0.0}, "--test-share between 0 and 1, got 0"),
        ({"test_share": 1.0}, "--test-share between"),
        ({"val_share": -0.1}, "--val-share from 0 to less than 1 - 0.3 .*, got -0.1"),
        ({"val_share": 0.5, "test_share": 0.5}, "--val-share from 0 to less than 1 - 0.5 .*, got 0.5"),
        ({"val_share": float("nan")}, "--val-share from 0"),
        ({"seed": -1}, "--seed from 0"),
        ({"name": "a b"}, "--name of 1 to 100 letters.*, got 'a b'"),
        ({"listed": "absent.csv"}, r"expected a list of images, got: .*absent\.csv does not exist"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    path = write(tmp_path, without("split", lines()))
    with pytest.raises(InputError, match=message):
        pack(tmp_path, tmp_path / options.pop("listed", path.name), **options)


def test_a_draw_and_a_column_exclude_each_other(tmp_path):
    path = write(tmp_path, lines())
    for options in ({"seed": 3}, {"test_share": 0.3}, {"val_share": 0.1}):
        with pytest.raises(InputError, match="column split"):
            pack(tmp_path, path, **options)
    alone = write(tmp_path, without("split", lines(("1",))))
    with pytest.raises(InputError, match="2 identities"):
        pack(tmp_path, alone)
    with pytest.raises(InputError, match="3 identities to draw train, val and test, got 1"):
        pack(tmp_path, alone, val_share=0.1)


def test_the_command(tmp_path, capsys):
    path = write(tmp_path, without("split", lines()))
    words = ["pack", "manifest", "--csv", path, "--root", tmp_path / "raw", "--out", tmp_path / "set", "--seed", 3]
    assert main([str(word) for word in [*words, "--test-share", 0.5, "--name", "lab", "--workers", 1]]) == 0
    assert (tmp_path / "set/lab-000000.tar").is_file()
    assert verify(tmp_path / "set") == []
    assert main([str(word) for word in [*words, "--jsonl", path]]) == 2
    assert main([str(word) for word in words[:2] + words[4:]]) == 2
    shown = capsys.readouterr()
    assert [line[:6] for line in shown.err.splitlines()] == ["error:"] * 2
