"""python -m shards: the road from synth to inspect for every layout, exit codes, one line for every error."""

import shutil
import subprocess
import sys

import pytest

from shards.__main__ import main
from tests.shards.raw import image_bytes, snapshot, write_sysu

LAYOUTS = ("sysu_mm01", "regdb", "llcm")


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture
def raw(tmp_path):
    return write_sysu(tmp_path / "raw")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_from_nothing_to_a_sheet(layout, tmp_path, capsys):
    raw, out = tmp_path / "raw", tmp_path / "set"
    small = ("--identities", 8, "--images-per-camera", 1, "--height", 48, "--workers", 1)
    assert run("synth", "--out", raw, "--layout", layout, *small) == 0
    assert run("pack", layout, "--root", raw, "--out", out) == 0
    assert run("verify", out) == 0
    assert run("inspect", out, "--html", tmp_path / "sheet.html") == 0
    assert (tmp_path / "sheet.html").is_file()
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    for word in ("images", "visible", "infrared"):
        assert word in shown.out


def test_verify_exits_1_and_names_shard_and_sample(raw, tmp_path, capsys):
    run("pack", "sysu_mm01", "--root", raw, "--out", tmp_path / "set")
    tar = tmp_path / "set" / "sysu_mm01-000000.tar"
    tar.write_bytes(tar.read_bytes().replace(image_bytes(111)[100:140], bytes(40)))
    assert run("verify", tmp_path / "set") == 1
    shown = capsys.readouterr()
    assert tar.name in shown.out + shown.err


def _cut(root):
    path = root / "cam1/0001/0002.jpg"
    path.write_bytes(path.read_bytes()[:-200])


def _nothing(root):
    pass


# words of the command -> (what is done to the raw folder before, words of the error)
MISTAKES = [
    (("pack", "sysu_mm01", "--root", "{raw}"), _nothing, "--out"),
    (("pack", "market1501", "--root", "{raw}", "--out", "{out}"), _nothing, "market1501"),
    (("explode",), _nothing, "explode"),
    ((), _nothing, "VERB"),
    (("pack", "sysu_mm01", "--root", "{raw}/absent", "--out", "{out}"), _nothing, "expected the folder"),
    (("pack", "regdb", "--root", "{raw}", "--out", "{out}"), _nothing, "expected the folder"),
    (
        ("pack", "sysu_mm01", "--root", "{raw}", "--out", "{out}"),
        lambda root: [shutil.rmtree(root / f"cam{c}") for c in (3, 6)],
        "expected infrared images",
    ),
    (
        ("pack", "sysu_mm01", "--root", "{raw}", "--out", "{out}"),
        lambda root: (root / "exp/test_id.txt").write_text(""),
        "expected identities in split test",
    ),
    (("pack", "sysu_mm01", "--root", "{raw}", "--out", "{out}"), _cut, "cam1/0001/0002.jpg"),
    (("pack", "sysu_mm01", "--root", "{raw}", "--out", "{raw}"), _nothing, "expected"),
    (
        ("pack", "sysu_mm01", "--root", "{raw}", "--out", "{raw}", "--overwrite"),
        _nothing,
        "--overwrite replaces only a shard set",
    ),
    (("pack", "sysu_mm01", "--root", "{raw}", "--out", "{out}", "--shard-mib", "0"), _nothing, "--shard-mib"),
    (("verify", "{raw}/absent"), _nothing, "absent is not a folder"),
    (("inspect", "{raw}"), _nothing, "has 1 problem, the first is"),
    (("synth", "--out", "{raw}"), _nothing, "expected a new or empty folder"),
    (("synth", "--out", "{out}", "--identities", "2"), _nothing, "expected identities to be"),
    (("synth", "--out", "{out}", "--layout", "market1501"), _nothing, "market1501"),
]


@pytest.mark.parametrize(("words", "spoil", "says"), MISTAKES)
def test_a_mistake_is_one_line_and_loses_nothing(words, spoil, says, raw, tmp_path, capsys):
    spoil(raw)
    before = snapshot(tmp_path)
    assert run(*(word.format(raw=raw, out=tmp_path / "set") for word in words)) == 2
    shown = capsys.readouterr()
    errors = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, shown.err
    assert says in errors[0]
    assert snapshot(tmp_path) == before


def test_bad_images_can_be_left_out_and_are_listed(raw, tmp_path, capsys):
    _cut(raw)
    assert run("pack", "sysu_mm01", "--root", raw, "--out", tmp_path / "set", "--skip-bad") == 0
    assert "9 images left out, listed in index.json" in capsys.readouterr().out  # 8 of them of an id in no list
    assert "cam1/0001/0002.jpg" in (tmp_path / "set" / "index.json").read_text()
    assert run("verify", tmp_path / "set") == 0


def test_a_set_is_replaced_only_when_told_to(raw, tmp_path):
    pack = ("pack", "sysu_mm01", "--root", raw, "--out", tmp_path / "set")
    assert run(*pack) == 0
    before = snapshot(tmp_path / "set")
    assert run(*pack) == 2
    shutil.rmtree(raw / "cam2")
    assert snapshot(tmp_path / "set") == before
    assert run(*pack, "--overwrite") == 0
    assert snapshot(tmp_path / "set") != before


def test_the_module_runs_and_its_exit_code_is_the_shells(tmp_path):
    done = subprocess.run([sys.executable, "-m", "shards", "verify", tmp_path / "x"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert subprocess.run([sys.executable, "-m", "shards", "--help"], capture_output=True).returncode == 0
