"""Raw folders and lists of strangers: whatever they hold is refused by name or packed, and nothing else is touched."""

import json
import os
import re
import subprocess
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from shards.__main__ import main
from shards.inspect import open_set, summary_text, write_contact_sheet
from shards.remove import remove
from shards.sources import llcm, manifest, regdb, sysu_mm01
from shards.verify import verify
from tacaf.data.index import ShardIndex
from tacaf.files import shown
from tacaf.images import MOST_PIXELS
from tacaf.vocabulary import InputError
from tests.shards.raw import column, image_bytes, samples, snapshot, write_image, write_llcm, write_regdb, write_sysu

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 80\n%%EndComments\nshowpage\n%%EOF\n"
RAW = {"sysu_mm01": (sysu_mm01, write_sysu), "regdb": (regdb, write_regdb), "llcm": (llcm, write_llcm)}
FIRST = {
    "sysu_mm01": "cam1/0001/0001.jpg",
    "regdb": "Visible/1/back_v_10_1.bmp",
    "llcm": "vis/0005/0005_c01_s1_f0004_vis.jpg",
}


@pytest.fixture
def raw(tmp_path):
    return write_sysu(tmp_path / "raw")


def encoded(kind: str, tmp_path: Path) -> bytes:
    if kind == "EPS":
        return EPS
    if kind == "too large":
        side = int(MOST_PIXELS**0.5) + 1
        path = tmp_path / "large.png"
        Image.new("1", (side, side)).save(path)
        return path.read_bytes()
    return image_bytes(1, kind)


@pytest.mark.parametrize("kind", ["EPS", "GIF", "ICO", "JPEG2000", "PPM", "TGA", "PCX", "too large"])
@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_other_formats_are_refused_by_name_and_start_nothing(raw, tmp_path, kind, suffix, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError(f"started {args}")

    for name in ("Popen", "run", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, refuse)
    monkeypatch.setattr(os, "system", refuse)
    path = raw / "cam1/0001/0001.jpg"
    path.unlink()
    path.with_suffix(suffix).write_bytes(encoded(kind, tmp_path))
    with pytest.raises(InputError, match=f"cam1/0001/0001{suffix} "):
        sysu_mm01.pack(raw, tmp_path / "set")
    packed = sysu_mm01.pack(raw, tmp_path / "set", skip_bad=True)
    assert f"cam1/0001/0001{suffix}" in {entry.path for entry in packed.index.left_out}
    assert verify(tmp_path / "set") == []


@pytest.mark.parametrize(("kind", "suffix"), [("TIFF", ".tif"), ("WEBP", ".webp")])
def test_tiff_and_webp_are_packed(raw, tmp_path, kind, suffix):
    path = raw / "cam1/0001/0001.jpg"
    path.unlink()
    path.with_suffix(suffix).write_bytes(image_bytes(1, kind))
    sysu_mm01.pack(raw, tmp_path / "set")
    assert suffix[1:] in {extension for _, extension, _, _ in samples(tmp_path / "set")}
    assert verify(tmp_path / "set") == []
    assert "width" in summary_text(open_set(tmp_path / "set"))


@pytest.mark.parametrize("layout", RAW)
@pytest.mark.parametrize("what", ["file", "folder", "camera"])
def test_links_out_of_the_root_are_refused(tmp_path, layout, what):
    module, write = RAW[layout]
    root = write(tmp_path / "raw")
    victim = root / FIRST[layout]
    victim = {"file": victim, "folder": victim.parent, "camera": victim.parent.parent}[what]
    outside = tmp_path / "outside"
    victim.rename(outside)
    victim.symlink_to(outside)
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=victim.name) as raised:
        module.pack(root, tmp_path / "set", skip_bad=True)
    assert "is a link to elsewhere" in str(raised.value)
    assert snapshot(tmp_path) == before


def test_a_link_inside_the_root_and_a_linked_root_are_fine(raw, tmp_path):
    sysu_mm01.pack(raw, tmp_path / "a")
    path = raw / "cam1/0001/0001.jpg"
    path.rename(raw / "kept.jpg")
    path.symlink_to("../../kept.jpg")
    (tmp_path / "linked").symlink_to(raw)
    sysu_mm01.pack(tmp_path / "linked", tmp_path / "b")
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


@pytest.mark.parametrize("what", ["pipe", "link to nothing", "link in a circle"])
def test_an_image_that_is_no_file_is_a_bad_image_and_the_numbers_stay(raw, tmp_path, what):
    path = raw / "cam1/0001/0001.jpg"
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("0009.jpg" if "nothing" in what else "0001.jpg")
    with pytest.raises(InputError, match=r"cam1/0001/0001\.jpg"):
        sysu_mm01.pack(raw, tmp_path / "set")
    sysu_mm01.pack(raw, tmp_path / "set", skip_bad=True)
    own = (column(tmp_path / "set", "pid") == 1) & (column(tmp_path / "set", "camid") == 1)
    assert column(tmp_path / "set", "number")[own].tolist() == [2]


@pytest.mark.parametrize("layout", RAW)
def test_hidden_files_are_listed_and_never_counted(tmp_path, layout):
    module, write = RAW[layout]
    root = write(tmp_path / "raw")
    module.pack(root, tmp_path / "a")
    folders = {path.parent for path in root.rglob("*") if path.suffix in (".jpg", ".bmp")}
    if layout == "llcm":  # whose training folders are read through lists
        folders = {folder for folder in folders if "test_" in str(folder)}
    for folder in folders:
        (folder / f"._0001{Path(FIRST[layout]).suffix}").write_bytes(b"\0\5\x16\7" + bytes(100))
        (folder / ".0000.jpg").write_bytes(image_bytes(7))
    packed = module.pack(root, tmp_path / "b")
    a, b = snapshot(tmp_path / "a"), snapshot(tmp_path / "b")
    del a["index.json"], b["index.json"]
    assert a == b
    assert packed.index.left_out_count == json.loads((tmp_path / "a/index.json").read_text())["left_out_count"]
    assert sum("/." in entry.path for entry in packed.index.left_out) > 4


@pytest.mark.parametrize(
    ("layout", "old", "new"),
    [
        ("sysu_mm01", "cam2", "Cam2"),
        ("sysu_mm01", "cam2", "cam02"),
        ("sysu_mm01", "cam6", "CAM_6"),
        ("sysu_mm01", "exp", "Exp"),
        ("regdb", "Thermal", "thermal"),
        ("llcm", "test_vis/cam1", "test_vis/Cam1"),
        ("llcm", "test_nir/cam2", "test_nir/cam 2"),
    ],
)
def test_a_folder_spelled_another_way_is_refused(tmp_path, layout, old, new):
    module, write = RAW[layout]
    root = write(tmp_path / "raw")
    (root / old).rename(root / new)
    with pytest.raises(InputError, match=Path(new).name):
        module.pack(root, tmp_path / "set")


def test_a_camera_that_the_layout_does_not_have_is_listed_with_its_images(raw, tmp_path):
    (raw / "cam5").mkdir()
    (raw / "cam2").rename(raw / "cam7")
    packed = sysu_mm01.pack(raw, tmp_path / "set")
    entry = next(entry for entry in packed.index.left_out if entry.path == "cam7")
    assert "10 images" in entry.reason
    assert packed.index.left_out_count == 10 + 6  # and those of identity 9
    assert "no folder cam2" in packed.warnings


@pytest.mark.parametrize("name", ["3.0", " 3", "+3", "3.", "\uff13"])
def test_one_person_in_two_spellings_is_refused(raw, tmp_path, name):
    (raw / "cam1/0003").rename(raw / "cam1" / name)
    with pytest.raises(InputError, match="whole numbers"):
        sysu_mm01.pack(raw, tmp_path / "set")


ODD_NAMES = [b"\xff\xfe.jpg", b"a\nb\x1b[2J.jpg", "safe\u202egpj.jpg".encode(), b"back\\slash.jpg", "zoë.jpg".encode()]


def test_odd_names_are_kept_reversibly_and_shown_escaped(raw, tmp_path, capsys):
    folder = os.fsencode(raw / "cam1/0001")
    for name in ODD_NAMES:
        with open(os.path.join(folder, name), "wb") as file:
            file.write(image_bytes(3))
        with open(os.path.join(os.fsencode(raw / "cam1"), name), "wb") as file:
            file.write(b"x")
    assert main(["pack", "sysu_mm01", "--root", str(raw), "--out", str(tmp_path / "set")]) == 0
    sources = {facts["source"] for *_, facts in samples(tmp_path / "set")}
    kept = [r"\xff\xfe.jpg", "a\nb\x1b[2J.jpg", "safe\u202egpj.jpg", r"back\\slash.jpg", "zoë.jpg"]
    assert {f"cam1/0001/{name}" for name in kept} <= sources
    assert {f"cam1/{name}" for name in kept} <= {entry.path for entry in open_set(tmp_path / "set").index.left_out}
    assert verify(tmp_path / "set") == []
    write_contact_sheet(open_set(tmp_path / "set"), tmp_path / "sheet.html")
    assert main(["inspect", str(tmp_path / "set")]) == 0
    assert len(ShardIndex.open(tmp_path / "set")) == 37
    assert remove(tmp_path / "set", ["2"]).images == 8
    assert verify(tmp_path / "set") == []
    assert not {"\x1b", "\u202e"} & set(capsys.readouterr().out)


def test_a_bad_image_with_an_odd_name_is_one_line(raw, tmp_path, capsys):
    with open(os.fsencode(raw / "cam1/0001") + b"/\xff\n.jpg", "wb"):
        pass
    assert main(["pack", "sysu_mm01", "--root", str(raw), "--out", str(tmp_path / "set")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert r"cam1/0001/\xff\n.jpg" in line


def test_regdb_lists_may_name_files_that_are_not_utf8(tmp_path):
    root = write_regdb(tmp_path / "raw")
    old, new = os.fsencode(root / FIRST["regdb"]), os.fsencode(root / "Visible/1/") + b"/\xe9.bmp"
    os.rename(old, new)
    for path in (root / "idx").glob("*_visible_*.txt"):
        path.write_bytes(path.read_bytes().replace(b"Visible/1/back_v_10_1.bmp", b"Visible/1/\xe9.bmp"))
    regdb.pack(root, tmp_path / "set")
    assert verify(tmp_path / "set") == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 500,
        b"MATLAB 5.0 MAT-file" + b" " * 105 + b"\0\1IM" + b"\xff" * 64,
        {"id": np.array([[1.5, 2.0]])},
        {"id": np.array([[np.nan, 2.0]])},
        {"id": np.array([[-1, 2]])},
        {"id": np.array([[1 + 2j, 2]])},
        {"id": np.array([["one", "two"]], dtype=object)},
        {"id": {"nested": np.array([1])}},
        {"other": np.array([1])},
    ],
    ids=["empty", "zeros", "damaged", "fractions", "nan", "negative", "complex", "texts", "structure", "no id"],
)
def test_a_strangers_mat_file_is_one_clear_error(raw, tmp_path, data):
    (raw / "exp/val_id.txt").unlink()
    if isinstance(data, bytes):
        (raw / "exp/val_id.mat").write_bytes(data)
    else:
        savemat(raw / "exp/val_id.mat", data)
    with pytest.raises(InputError, match=r"val_id\.(mat|txt)"):
        sysu_mm01.pack(raw, tmp_path / "set")


def test_flipped_bytes_of_a_mat_file_are_one_clear_error_or_nothing(raw, tmp_path):
    (raw / "exp/val_id.txt").unlink()
    savemat(raw / "exp/val_id.mat", {"id": np.array([[3]], dtype=np.uint16)}, do_compression=True)
    whole = (raw / "exp/val_id.mat").read_bytes()
    for place in range(len(whole)):
        (raw / "exp/val_id.mat").write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with suppress(InputError):
            sysu_mm01._id_list(raw / "exp", "val")


@pytest.mark.parametrize("text", ["9" * 400, "1,\0", "\ufeff1,2,x", "1;2"])
def test_a_strangers_id_list_is_one_clear_error(raw, tmp_path, text):
    (raw / "exp/val_id.txt").write_text(text)
    with pytest.raises(InputError, match=r"val_id\.txt"):
        sysu_mm01.pack(raw, tmp_path / "set")


def test_a_mark_before_the_first_id_says_nothing(raw, tmp_path):
    (raw / "exp/val_id.txt").write_text("\ufeff3\r\n")
    assert sysu_mm01.pack(raw, tmp_path / "set").index.splits["val"] == [3]


@pytest.mark.parametrize("number", ["9" * 400, "٣", "1e3"])
def test_regdb_ids_of_another_form_are_one_clear_error(tmp_path, number):
    root = write_regdb(tmp_path / "raw")
    path = root / "idx/train_visible_1.txt"
    path.write_text(path.read_text().replace("Visible/1/", f"Visible/{number}/"))
    with pytest.raises(InputError, match=r"train_visible_1\.txt"):
        regdb.pack(root, tmp_path / "set")


JSON_LINES = {
    "a key twice": '{"path": "a.jpg", "pid": 1, "pid": 2, "modality": "rgb"}',
    "NaN": '{"path": "a.jpg", "pid": NaN, "modality": "rgb"}',
    "an infinity": '{"path": "a.jpg", "pid": 1, "modality": "rgb", "score": Infinity}',
    "400 digits": '{"path": "a.jpg", "pid": %s, "modality": "rgb"}' % ("9" * 400),
    "5000 digits": '{"path": "a.jpg", "pid": %s, "modality": "rgb"}' % ("9" * 5000),
    "400 digits as text": '{"path": "a.jpg", "pid": "%s", "modality": "rgb"}' % ("9" * 400),
    "a long name": '{"path": "a.jpg", "pid": "%s", "modality": "rgb"}' % ("x" * 5000),
    "a long path": '{"path": "%s.jpg", "pid": 1, "modality": "rgb"}' % ("x" * 5000),
    "a long line": '{"path": "a.jpg", "pid": 1, "modality": "rgb", "note": "%s"}' % ("x" * 2**17),
    "too deep": f'{{"path": "a.jpg", "pid": 1, "modality": "rgb", "note": {"[" * 50 + "]" * 50}}}',
    "a NUL": '{"path": "a.jpg", "pid": "a\\u0000b", "modality": "rgb"}',
    "a camera of 400 digits": '{"path": "a.jpg", "pid": 1, "modality": "rgb", "camid": %s}' % ("9" * 400),
}


@pytest.mark.parametrize("name", JSON_LINES)
def test_a_hostile_line_is_one_clear_error(tmp_path, name):
    write_image(tmp_path / "raw/a.jpg", 1)
    path = tmp_path / "list.jsonl"
    path.write_text("\n" + JSON_LINES[name] + "\n")
    with pytest.raises(InputError, match=r"list\.jsonl:2"):
        manifest.pack(tmp_path / "raw", tmp_path / "set", path, jsonl=True)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3", "3.0"),
        ("3", "03"),
        ("3", "3."),
        ("zoë", "zoe\u0308"),
        ("Ann", "Ann\u200b"),
        ("A", "\uff21"),
        ("x y", "x  y"),
    ],
)
def test_two_spellings_of_a_person_are_refused(tmp_path, one, other):
    rows = []
    for number, pid in enumerate((one, other, "Bob", "Cem")):
        for modality in ("rgb", "nir"):
            path = write_image(tmp_path / f"raw/{modality}/{number}.jpg", number)
            rows.append({"path": str(path.relative_to(tmp_path / "raw")), "pid": pid, "modality": modality})
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=re.escape(" and ".join(map(shown, sorted((one, other)))))):
        manifest.pack(tmp_path / "raw", tmp_path / "set", tmp_path / "list.jsonl", jsonl=True)


def test_hidden_files_in_a_list_are_left_out(tmp_path):
    rows = []
    for pid in "123":
        for modality in ("rgb", "nir"):
            for name in ("0", "._0"):
                path = write_image(tmp_path / f"raw/{modality}/{pid}/{name}.jpg", int(pid))
                rows.append(f"{path.relative_to(tmp_path / 'raw')},{pid},{modality}\n")
    (tmp_path / "list.csv").write_text("path,pid,modality\n" + "".join(rows))
    packed = manifest.pack(tmp_path / "raw", tmp_path / "set", tmp_path / "list.csv")
    assert (packed.index.images, len(packed.index.left_out)) == (6, 6)
    assert set(column(tmp_path / "set", "number").tolist()) == {1}


@pytest.mark.parametrize("what", ["folder", "pipe"])
def test_a_list_that_is_no_file(tmp_path, what):
    path = tmp_path / "list.csv"
    path.mkdir() if what == "folder" else os.mkfifo(path)
    (tmp_path / "raw").mkdir()
    with pytest.raises(InputError, match=r"list\.csv"):
        manifest.pack(tmp_path / "raw", tmp_path / "set", path)


def test_a_home_folder_and_odd_paths(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_sysu(tmp_path / "raw")
    assert main(["pack", "sysu_mm01", "--root", "~/raw", "--out", "~/set"]) == 0
    assert main(["verify", "~/set"]) == 0
    assert main(["verify", "a\0b"]) == main(["verify", ""]) == main(["verify", "x" * 5000]) == 2
    assert [line[:6] for line in capsys.readouterr().err.splitlines()] == ["error:"] * 3
