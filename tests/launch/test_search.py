"""search.py as a user types it: folders and a kept index in, ranked lists and a page out, bad input in one line."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch import search
from tacaf.child_processes import child_environment
from tacaf.search import search_page
from tacaf.search.embedder import Embedder

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def folders(raw_sysu, tmp_path):
    """A gallery of visible and queries of infrared images of rendered people, as unlabelled files."""
    for camid, name in ((1, "gallery"), (3, "query")):
        for path in sorted((raw_sysu / f"cam{camid}").rglob("*.jpg"))[:12]:
            copy = tmp_path / name / path.parent.name / path.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    return tmp_path


def command(*words: object) -> int:
    return search.main([str(word) for word in words])


def test_two_folders_as_a_command(untrained_run, folders):
    words = ["--gallery", "gallery", "--query", "query", "--html", "page.html", "--json", "lists.json", "--top", "3"]
    (folders / "gallery" / "bad.jpg").write_bytes(b"hello")
    (folders / "query" / "cut.jpg").write_bytes(next((folders / "query").rglob("*.jpg")).read_bytes()[:-300])
    done = subprocess.run(
        [sys.executable, ROOT / "launch" / "search.py", "--run", untrained_run, *words],
        cwd=folders,
        env={"PYTHONPATH": child_environment()["PYTHONPATH"], "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((folders / "lists.json").read_text())
    assert len(found["queries"]) == found["gallery_images"] == 12
    assert [text.split(":")[0] for text in found["left_out"]] == ["gallery/bad.jpg", "query/cut.jpg"]
    assert "2 files left out" in done.stderr
    assert_ranked_as_by_hand(found, Embedder.load(untrained_run), folders)
    page = (folders / "page.html").read_text()
    assert len(re.findall(r'<img [^>]*src="data:image/jpeg;base64,', page)) == 12 * 4
    assert not re.findall(r'(?:src|href)="(?!data:)', page), "one file, nothing loaded from elsewhere"
    assert "bad.jpg" in page


def assert_ranked_as_by_hand(found: dict, embedder: Embedder, folders: Path) -> None:
    names = sorted(path.relative_to(folders / "gallery").as_posix() for path in folders.glob("gallery/*/*.jpg"))
    gallery_GD = embedder.embed([folders / "gallery" / name for name in names], "visible")
    for one in found["queries"]:
        distance_G = 1 - gallery_GD @ embedder.embed([folders / "query" / one["query"]], "infrared")[0]
        nearest = np.argsort(distance_G)[:3]
        np.testing.assert_allclose([match["distance"] for match in one["matches"]], distance_G[nearest], atol=1e-4)
        assert [match["rank"] for match in one["matches"]] == [1, 2, 3]
        assert {match["name"] for match in one["matches"]} <= set(names)


def lists_of(path: Path) -> list[list[tuple]]:
    return [
        [(match["name"], match["distance"]) for match in one["matches"]]
        for one in json.loads(path.read_text())["queries"]
    ]


def test_an_index_gives_the_same_without_the_images(untrained_run, folders, capsys):
    one = next((folders / "query").rglob("*.jpg"))
    kept = ["--run", untrained_run, "--index", folders / "people.index", "--query", one]
    assert command(*kept, "--gallery", folders / "gallery", "--json", folders / "a.json") == 0
    shutil.rmtree(folders / "gallery")
    assert command(*kept, "--json", folders / "b.json", "--html", folders / "b.html") == 0
    assert lists_of(folders / "a.json") == lists_of(folders / "b.json")
    assert len(lists_of(folders / "b.json")[0]) == 10
    assert (folders / "b.html").read_text().count("no picture") == 10


def test_an_index_grows_and_people_are_taken_out_without_a_model(untrained_run, folders, capsys):
    index, gallery = folders / "people.index", folders / "gallery"
    people = sorted(path.name for path in gallery.iterdir())
    shutil.move(gallery / people[0], folders / people[0])
    assert command("--run", untrained_run, "--index", index, "--gallery", gallery) == 0
    shutil.move(folders / people[0], gallery / people[0])
    assert command("--run", untrained_run, "--index", index, "--gallery", gallery) == 0
    count = len(list((gallery / people[0]).iterdir()))
    assert f"gallery: {count} images added, 12 in all" in capsys.readouterr().out
    assert command("--index", index, "--remove", people[0]) == 0
    assert f"{count} images removed" in capsys.readouterr().out
    assert command("--index", index, "--list") == 0
    listed = capsys.readouterr().out.split()
    assert len(listed) == 12 - count
    assert not [name for name in listed if name.startswith(people[0])]
    assert command("--index", index, "--remove", *people[1:]) == 0
    words = ["--run", untrained_run, "--index", index, "--query", folders / "query"]
    assert command(*words, "--json", folders / "x.json") == 2
    assert "empty index" in capsys.readouterr().err


def test_within_one_modality_an_image_does_not_find_itself(untrained_run, folders):
    gallery = folders / "gallery"
    words = ["--run", untrained_run, "--gallery", gallery, "--query", gallery, "--query-modality", "visible"]
    assert command(*words, "--top", 20, "--json", folders / "x.json") == 0
    found = json.loads((folders / "x.json").read_text())
    assert (found["query_modality"], found["gallery_modality"]) == ("visible", "visible")
    for one in found["queries"]:
        assert len(one["matches"]) == 11
        assert one["query"] not in [match["name"] for match in one["matches"]]


def test_images_of_the_same_content_are_all_found_and_none_of_them_by_itself(untrained_run, folders):
    gallery = folders / "gallery"
    one = sorted(gallery.rglob("*.jpg"))[0]
    for number in range(3):
        shutil.copy(one, gallery / f"copy{number}.jpg")
    words = ["--run", untrained_run, "--gallery", gallery, "--query-modality", "visible", "--json", folders / "x.json"]
    assert command(*words, "--query", one, "--top", 20) == 0
    (found,) = json.loads((folders / "x.json").read_text())["queries"]
    assert len(found["matches"]) == 11
    other = sorted(gallery.rglob("*.jpg"))[1]
    assert command(*words, "--query", other, "--top", 20) == 0
    (found,) = json.loads((folders / "x.json").read_text())["queries"]
    same = [match for match in found["matches"] if match["name"].startswith("copy") or match["name"] in str(one)]
    assert len(same) == 4
    assert len({match["distance"] for match in same}) == 1
    assert len(found["matches"]) == 14


def test_an_index_with_a_changed_byte(untrained_run, folders, capsys):
    index = folders / "people.index"
    words = ["--run", untrained_run, "--index", index, "--query", folders / "query", "--json", folders / "x.json"]
    assert command("--run", untrained_run, "--gallery", folders / "gallery", "--index", index) == 0
    data = bytearray(index.read_bytes())
    data[-1000] ^= 1
    index.write_bytes(data)
    assert command(*words) == 2
    assert "people.index" in capsys.readouterr().err
    assert not (folders / "x.json").exists()


def test_an_index_of_flipped_global_features_says_so_itself(untrained_run, folders):
    kind = ["--embedding", "global_only", "--flip", "--gallery-modality", "infrared"]
    index = folders / "people.index"
    assert command("--run", untrained_run, "--gallery", folders / "query", "--index", index, *kind) == 0
    words = ["--run", untrained_run, "--index", index, "--query", folders / "gallery", "--query-modality", "visible"]
    assert command(*words, "--json", folders / "x.json") == 0
    found = json.loads((folders / "x.json").read_text())
    assert (found["embedding"], found["flip"], found["gallery_modality"]) == ("global_only", True, "infrared")


def test_names_do_not_write_the_page(untrained_run, folders):
    name = "<script>alert(1)<"
    Image.new("RGB", (30, 60), (200, 10, 10)).save(folders / "gallery" / f"{name}.png")
    words = ["--run", untrained_run, "--gallery", folders / "gallery", "--query", folders / "query"]
    assert command(*words, "--top", 13, "--html", folders / "x.html") == 0
    assert "<script" not in (folders / "x.html").read_text()
    assert "&lt;script&gt;" in (folders / "x.html").read_text()


def test_an_index_from_elsewhere_shows_no_file_outside_the_gallery(folders, tmp_path):
    Image.new("RGB", (30, 60)).save(tmp_path / "secret.png")
    assert search_page._inside(folders / "gallery", "../secret.png") is None
    assert search_page._inside(folders / "gallery", str(tmp_path / "secret.png")) is None
    name = next((folders / "gallery").rglob("*.jpg")).relative_to(folders / "gallery").as_posix()
    assert search_page._inside(folders / "gallery", name) == folders / "gallery" / name


def asked(run: str = "RUN", gallery: str = "gallery", query: str = "query", json: str = "x.json") -> list[str]:
    """The words of a search. RUN stands for the run's folder."""
    return ["--run", run, "--gallery", gallery, "--query", query, "--json", json]


BAD = {
    "no gallery": (["--run", "RUN", "--query", "query", "--json", "x.json"], "--gallery"),
    "no model": (["--gallery", "gallery", "--query", "query", "--json", "x.json"], "--run"),
    "nothing to do": (["--run", "RUN"], "--index"),
    "only an index": (["--index", "people.index"], "--remove or --list"),
    "nowhere to write": (["--run", "RUN", "--gallery", "gallery", "--query", "query"], "--html"),
    "no folder to write into": (asked(json="no/x.json"), "no/x.json"),
    "nothing to search for": (["--run", "RUN", "--gallery", "gallery", "--json", "x.json"], "--query"),
    "no index to remove from": (["--remove", "a"], "--index"),
    "an index that is not there": (["--index", "none.index", "--remove", "a"], "none.index"),
    "top 0": ([*asked(), "--top", "0"], "--top"),
    "a gallery that is none": (asked(gallery="none"), "none"),
    "an empty gallery": (asked(gallery="empty"), "images in empty"),
    "no query": (asked(query="none.jpg"), "none.jpg"),
    "an empty query": (asked(query="empty"), "query images in empty"),
    "no run": (asked(run="empty"), "empty/model.safetensors"),
    "another file as index": (
        ["--run", "RUN", "--index", "text", "--query", "query", "--json", "x.json"],
        "index text",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(untrained_run, folders, monkeypatch, capsys, case):
    monkeypatch.chdir(folders)
    (folders / "empty").mkdir()
    (folders / "text").write_text("hello")
    words, says = BAD[case]
    assert command(*[untrained_run if word == "RUN" else word for word in words]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (folders / "x.json").exists()


def test_another_modality_than_the_indexs_is_refused(untrained_run, folders, capsys):
    words = ["--run", untrained_run, "--gallery", folders / "gallery", "--index", folders / "people.index"]
    assert command(*words) == 0
    before = (folders / "people.index").read_bytes()
    assert command(*words, "--gallery-modality", "infrared") == 2
    assert "got infrared" in capsys.readouterr().err
    assert (folders / "people.index").read_bytes() == before
