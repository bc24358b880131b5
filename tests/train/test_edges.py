"""What every command does at its edges: a full disk, odd names, a folder in place of a file, signals at any moment."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import evaluate, export, report, search
from tacaf.evaluation import __main__ as scoring
from tacaf.train.config import load_config
from tacaf.train.run import open_folder
from tacaf.vocabulary import InputError
from tests.disks import fill
from tests.processes import LIMIT_S
from tests.train.finished import write_model, write_scores

ROOT = Path(__file__).parent.parent.parent
SIGNS = "a\u202ef\u200f\x1b[31m\n"  # turns the direction, colours a terminal, ends a line
NOT_UTF8 = os.fsdecode(b"\xff\xfe")


@pytest.fixture(scope="module")
def run(sysu_shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_scores(folder, write_model(folder, sysu_shards))
    return folder


@pytest.fixture(scope="module")
def people(raw_sysu, tmp_path_factory) -> Path:
    """Two folders of a few images, `gallery` and `query`."""
    home = tmp_path_factory.mktemp("people")
    for camid, name in ((1, "gallery"), (3, "query")):
        (home / name).mkdir()
        for number, path in enumerate(sorted((raw_sysu / f"cam{camid}").rglob("*.jpg"))[:3]):
            shutil.copy(path, home / name / f"{number}.jpg")
    return home


def words_of(command: str, run: Path, people: Path, shards: Path, out: Path) -> list[str]:
    """A command that writes to `out`, a file or a folder that is not there."""
    words = {
        "search": ["--run", run, "--gallery", people / "gallery", "--query", people / "query", "--json", out],
        "search page": ["--run", run, "--gallery", people / "gallery", "--query", people / "query", "--html", out],
        "search index": ["--run", run, "--gallery", people / "gallery", "--index", out],
        "export": ["--run", run, "--to", "safetensors", "--out", out],
        "score": ["score", "--features", run / "results" / "features.npz", "--protocol", "sysu_mm01", "--json", out],
        "evaluate": ["--run", run, "--shards", shards, "--protocol", "generic", "--json", out],
        "evaluate features": ["--run", run, "--shards", shards, "--protocol", "generic", "--features", out],
    }[command]
    return [str(word) for word in words]


COMMANDS = {
    "search": search,
    "search page": search,
    "search index": search,
    "export": export,
    "score": scoring,
    "evaluate": evaluate,
    "evaluate features": evaluate,
}


def one_line(text: str) -> str:
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    assert text[:-1].isprintable()
    return text


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_one_line_and_loses_nothing(command, run, people, sysu_shards, small_disk, capsys):
    out = small_disk / "out"
    if command not in ("export", "search index"):
        out.write_text("old")
    fill(small_disk)
    before = sorted(path.name for path in small_disk.iterdir())
    assert COMMANDS[command].main(words_of(command, run, people, sysu_shards, out)) == 2
    error = one_line(capsys.readouterr().err)
    assert "no space left on device" in error
    assert str(small_disk) in error
    assert sorted(path.name for path in small_disk.iterdir()) == before
    if command not in ("export", "search index"):
        assert out.read_text() == "old"


def test_a_report_on_a_full_disk(run, small_disk, capsys):
    copy = small_disk / "run"
    shutil.copytree(run, copy)
    (copy / "report.html").write_text("the old page")
    fill(small_disk)
    assert report.main(["--run", str(copy)]) == 2
    assert "report.html: no space left on device" in one_line(capsys.readouterr().err)
    assert (copy / "report.html").read_text() == "the old page"
    assert not list(copy.rglob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "below a file", "too long", "NUL"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_where_nothing_can_be_written(command, kind, run, people, sysu_shards, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").touch()
    (tmp_path / "file").touch()
    out = {
        "folder": tmp_path / "folder",
        "below a file": tmp_path / "file" / "out",
        "too long": tmp_path / ("x" * 5000),
        "NUL": tmp_path / "a\0b",
    }[kind]
    before = sorted(tmp_path.rglob("*"))
    assert COMMANDS[command].main(words_of(command, run, people, sysu_shards, out)) == 2
    one_line(capsys.readouterr().err)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "device", ["meta", "mps", "cuda:x", "", "cpu:0", "cuda:99999999999999999999", "vulkan", "cuda:7\n"]
)
def test_devices_of_pytorch_that_cannot_be_used(device, run, people, tmp_path, sysu_shards, capsys):
    for command in ("search", "score"):
        words = words_of(command, run, people, sysu_shards, tmp_path / "out")
        assert COMMANDS[command].main([*words, "--device", device]) == 2
        assert "--device" in one_line(capsys.readouterr().err)


def test_names_of_any_bytes_in_a_gallery(run, people, tmp_path, capsys):
    """They are shown escaped, and kept as they are: the index finds their files again and takes them out."""
    gallery = tmp_path / "gallery"
    names = [f"{SIGNS}.jpg", f"{NOT_UTF8}.jpg", "<b>&amp;.jpg"]
    gallery.mkdir()
    for name, image in zip(names, sorted((people / "gallery").iterdir()), strict=True):
        shutil.copy(image, gallery / name)
    (gallery / f"bad {SIGNS}.jpg").write_bytes(b"no image")
    query = tmp_path / f"query {NOT_UTF8} {SIGNS}"
    shutil.copytree(people / "query", query)
    page, lists, index = (tmp_path / name for name in (f"{NOT_UTF8}.html", f"{NOT_UTF8}.json", f"{SIGNS}.index"))
    words = ["--run", run, "--index", index, "--query", query, "--html", page, "--json", lists]
    for more in (["--gallery", gallery], []):  # the second time from the index alone
        assert search.main([str(word) for word in (*words, *more)]) == 0
        said = capsys.readouterr()
        assert all(line.isprintable() for line in (said.out + said.err).splitlines())
        text = page.read_bytes().decode("utf-8")
        assert all(line.isprintable() for line in text.splitlines())
        assert "a\\u202ef\\u200f\\x1b[31m\\n.jpg" in text
        assert "\\xff\\xfe.jpg" in text
        assert "&lt;b&gt;&amp;amp;.jpg" in text
        found = json.loads(lists.read_text())
        assert {match["name"] for one in found["queries"] for match in one["matches"]} == set(names)
    assert search.main(["--index", str(index), "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert search.main(["--index", str(index), "--remove", *names[:2]]) == 0
    assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())


@pytest.mark.slow
def test_a_run_with_signs_in_its_name(run, sysu_shards, tmp_path, capsys):
    home = tmp_path / SIGNS
    shutil.copytree(run, home)
    assert report.main(["--run", str(home)]) == 0
    assert evaluate.main(["--run", str(home), "--shards", str(sysu_shards), "--protocol", "generic"]) == 0
    assert export.main(["--run", str(home), "--to", "safetensors"]) == 0
    said = capsys.readouterr()
    assert all(line.isprintable() for line in (said.out + said.err).splitlines())
    page = (home / "report.html").read_bytes().decode("utf-8")
    assert all(line.isprintable() for line in page.splitlines())


def test_a_run_whose_name_is_not_utf8_is_refused_before_the_training(tmp_path):
    config = load_config(ROOT / "launch" / "configs" / "demo.yaml", ["data.shards=none", f"run={tmp_path / 'run'}"])
    with (
        pytest.raises(InputError, match=r"run: .*\\xff\\xfe"),
        open_folder(config.model_copy(update={"run": tmp_path / NOT_UTF8}), resume=False),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_tilde_in_every_option(run, people, sysu_shards, tmp_path, monkeypatch, capsys):
    for name, place in (("run", run), ("people", people), ("shards", sysu_shards)):
        (tmp_path / name).symlink_to(place)
    (tmp_path / "out").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "out")
    home = Path("~")
    for number, command in enumerate(COMMANDS):
        words = words_of(command, home / "run", home / "people", home / "shards", home / "out" / str(number))
        assert COMMANDS[command].main(words) == 0
    capsys.readouterr()
    kept = {str(number) for number in range(len(COMMANDS))}
    assert {path.name for path in (tmp_path / "out").iterdir()} == kept


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
def test_signals_at_random_moments(command, run, people, sysu_shards, tmp_path):
    """After the first import of Python's own: one line, or the whole result."""
    module, draw = COMMANDS[command].__name__, random.Random(command)
    words = words_of(command, run, people, sysu_shards, tmp_path / "out")
    began, limit_s = time.monotonic(), None
    for _ in range(8):
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [sys.executable, "-m", module, *words], cwd=ROOT, stdout=pipe, stderr=pipe, text=True
        )
        if limit_s is not None:
            time.sleep(draw.uniform(0.5, limit_s))
            process.send_signal(draw.choice([signal.SIGINT, signal.SIGTERM]))
        _, err = process.communicate(timeout=LIMIT_S)
        limit_s = limit_s or time.monotonic() - began
        assert process.returncode in (0, 130, 143)
        assert (
            err == "" if process.returncode == 0 else one_line(err) in ("error: interrupted\n", "error: terminated\n")
        )
        assert not list(tmp_path.rglob("*.partial"))
        if command == "export" and (tmp_path / "out").exists():
            shutil.rmtree(tmp_path / "out")
