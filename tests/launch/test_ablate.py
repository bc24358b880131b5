"""ablate.py: rows and seeds to tables with intervals, resumed, never complete before they are."""

import json
import shutil

import pytest

from launch import ablate
from launch.study.trainings import Training
from shards.pedestrians import benchmarks
from shards.remove import remove
from tacaf.shard_set import read_index
from tests.train.tiny_runs import TINY

SETTINGS = [part for value in (*TINY, "train.epochs=1", "evaluation.every=0") for part in ("--set", value)]


@pytest.fixture
def small(monkeypatch):
    """The first benchmark at the size of a thimble: 15 identities, 9 of which train."""
    whole = benchmarks.BENCHMARKS["plain_1"]
    made = whole.__class__(**{**vars(whole), "identities": 15, "height": 96, "images_per_camera": 3})
    monkeypatch.setitem(benchmarks.BENCHMARKS, "plain_1", made)


@pytest.fixture
def ablation(small, once):
    """The folder of a finished ablation: two rows, two seeds. Read only."""

    def make(out) -> None:
        assert ablate.main(words(out, "--seeds", "0", "1")) == 0

    return once("ablation", make)


def keep(ablation, out, *trainings: tuple[str, int]) -> None:
    """Give `out` the set of the finished ablation, and what was kept of these trainings (row, seed)."""
    shutil.copytree(ablation / "sets", out / "sets")
    (out / "results").mkdir()
    lines = (ablation / "results" / "ablation_plain_1.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if (json.loads(line)["row"], json.loads(line)["seed"]) in trainings]
    assert len(kept) == len(trainings)
    (out / "results" / "ablation_plain_1.jsonl").write_text("".join(kept))


def words(out, *more) -> list[str]:
    return [
        "--out",
        str(out),
        "--rows",
        "baseline",
        "full",
        "--parallel",
        "2",
        "--resamplings",
        "200",
        *SETTINGS,
        *more,
    ]


@pytest.mark.slow
def test_rows_seeds_and_intervals_on_validation_and_on_test(ablation, tmp_path, capsys):
    shutil.copytree(ablation, tmp_path, dirs_exist_ok=True)
    table = json.loads((tmp_path / "results" / "ablation_plain_1_val.json").read_text())
    assert table["complete"]
    assert table["split"] == "validation"
    baseline, full = table["rows"]
    assert set(baseline["seeds"]) == set(full["seeds"]) == {"0", "1"}
    assert not baseline["against"]
    found = full["against"]["baseline"]["rank1"]
    means = [full["seeds"][seed]["rank1"] - baseline["seeds"][seed]["rank1"] for seed in "01"]
    assert found["mean"] == pytest.approx(sum(means) / 2)
    assert found["low"] <= found["mean"] <= found["high"]
    # the figure of the training's own result, made by other code
    own = json.loads(
        (tmp_path / "runs/plain_1-full-seed1/results/sysu_mm01-all_search-1shot-literature-val.json").read_text()
    )
    assert full["seeds"]["1"]["rank1"] == pytest.approx(own["mean"]["rank1"])
    assert full["seeds"]["1"]["mAP"] == pytest.approx(own["mean"]["mAP"])
    assert own["split"] == "val"
    assert own["trained_on"]["set"] == "tacaf_plain_1"
    assert "Not complete" not in (tmp_path / "results" / "ablation_plain_1_val.md").read_text()
    assert (tmp_path / "results" / "ablation_plain_1_val.svg").read_text().startswith("<svg")

    # nothing is trained again for the test identities, which are others
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("model.safetensors")}
    assert ablate.main(words(tmp_path, "--seeds", "0", "1", "--test")) == 0, capsys.readouterr()
    assert {path: path.stat().st_mtime_ns for path in made} == made
    tested = json.loads((tmp_path / "results" / "ablation_plain_1_test.json").read_text())
    assert tested["complete"]
    assert tested["split"] == "test"
    assert tested["rows"][0]["seeds"] != baseline["seeds"]
    assert json.loads((tmp_path / "results" / "ablation_plain_1_val.json").read_text())["rows"] == table["rows"]

    # what is kept of a training is enough for every table, without set and runs; and it names its circumstances
    lines = (tmp_path / "results" / "ablation_plain_1.jsonl").read_text().splitlines()
    assert len(lines) == 4
    kept = next(one for one in map(json.loads, lines) if (one["row"], one["seed"]) == ("full", 1))
    assert {name: value for name, value in kept["scores"]["val"].items() if name != "people"} == own
    assert kept["scores"]["test"]["split"] == "test"
    assert sum(kept["scores"]["val"]["people"]["queries"]) == own["valid_queries"]
    assert kept["settings"][-1] == "seed=1"
    assert str(tmp_path) not in json.dumps(kept)
    shutil.rmtree(tmp_path / "runs")
    shutil.rmtree(tmp_path / "sets")
    elsewhere = words(tmp_path / "other", "--seeds", "0", "1", "--results", str(tmp_path / "results"))
    for split, before in (((), table), (("--test",), tested)):
        assert ablate.main([*elsewhere, *split]) == 0, capsys.readouterr()
        again = json.loads((tmp_path / "results" / f"ablation_plain_1_{'test' if split else 'val'}.json").read_text())
        assert again["rows"] == before["rows"]
    assert not (tmp_path / "other").exists()
    capsys.readouterr()
    assert ablate.main([*elsewhere, "--set", "loss.margin=0.4"]) == 2
    said = capsys.readouterr().err
    assert "ablation_plain_1.jsonl, row baseline, seed 0" in said
    assert "loss.margin = 0.3" in said
    assert "--results" in said


@pytest.mark.slow
def test_a_packed_set_is_studied_like_a_benchmark(sysu_shards, tmp_path, capsys):
    shards = tmp_path / "set"
    shutil.copytree(sysu_shards, shards)
    study = ["--out", str(tmp_path), "--shards", str(shards), "--rows", "baseline", "--seeds", "0", *SETTINGS]
    assert ablate.main([*study, "--test"]) == 0, capsys.readouterr()
    table = json.loads((tmp_path / "results" / "ablation_sysu_mm01_test.json").read_text())
    assert table["complete"]
    assert table["protocol"] == "generic, infrared_to_visible, every gallery image"
    assert not (tmp_path / "sets").exists()  # no benchmark was made
    [line] = (tmp_path / "results" / "ablation_sysu_mm01.jsonl").read_text().splitlines()
    kept = json.loads(line)
    assert kept["benchmark"] == "sysu_mm01"
    for split in ("val", "test"):
        scores = kept["scores"][split]
        assert (scores["protocol"], scores["direction"], scores["split"]) == ("generic", "infrared_to_visible", split)
    assert table["rows"][0]["seeds"]["0"]["rank1"] == pytest.approx(kept["scores"]["test"]["mean"]["rank1"])

    # the scores that are kept belong to this set, and not to another one of its name
    remove(shards, [str(read_index(shards).splits["test"][0])])
    assert ablate.main(study) == 2
    said = capsys.readouterr().err
    assert "row baseline, seed 0" in said
    assert kept["scores"]["val"]["trained_on"]["sha256"][:12] in said
    kept["scores"]["val"]["trained_on"] = None
    (tmp_path / "results" / "ablation_sysu_mm01.jsonl").write_text(json.dumps(kept))
    assert ablate.main(study) == 2
    assert "row baseline, seed 0 does not record its training set" in capsys.readouterr().err


@pytest.mark.slow
def test_a_damaged_result_file_is_refused_and_a_wanted_one_is_not_made(small, tmp_path, capsys):
    path = tmp_path / "results" / "ablation_plain_1.jsonl"
    path.parent.mkdir(parents=True)
    for damaged in ('{"scores": {"val": ', "[" * 5000, '{"scores": 1}', "[]", '{"scores": {}, "scores": {}}', "\xff"):
        path.write_bytes(damaged.encode("latin-1"))
        assert ablate.main(words(tmp_path, "--seeds", "0")) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {path}, line 1: ")
        assert error.count("\n") == 1
    path.unlink()
    assert ablate.main(words(tmp_path, "--seeds", "0", "--only-tables")) == 0
    assert not (tmp_path / "runs").exists()
    assert "1 of 1 seeds not finished" in (tmp_path / "results" / "ablation_plain_1_val.md").read_text()


@pytest.mark.slow
def test_a_table_that_is_not_whole_says_so(ablation, tmp_path, monkeypatch, capsys):
    keep(ablation, tmp_path, ("baseline", 0))
    sound = Training.command

    def command(one, ranks):
        return ["false"] if "full" in one.folder.name else sound(one, ranks)

    monkeypatch.setattr(Training, "command", command)
    assert ablate.main(words(tmp_path, "--seeds", "0")) == 1
    table = json.loads((tmp_path / "results" / "ablation_plain_1_val.json").read_text())
    assert not table["complete"]
    assert table["rows"][1]["lacks"] == ["seed 0: its training ended with status 1, see plain_1-full-seed0.log"]
    page = (tmp_path / "results" / "ablation_plain_1_val.md").read_text()
    assert "**Not complete" in page
    assert "| full (augmentation + IPCAM + CMAAM) | 0 | not measured |" in page
    # a seed more is asked for than was finished
    monkeypatch.setattr(ablate, "run_all", lambda *_, **__: True)
    ablate.main(words(tmp_path, "--seeds", "0", "1"))
    table = json.loads((tmp_path / "results" / "ablation_plain_1_val.json").read_text())
    assert table["rows"][0]["lacks"] == ["1 of 2 seeds not finished"]


@pytest.mark.slow
def test_a_try_is_a_row_of_its_own_table(ablation, tmp_path, capsys):
    keep(ablation, tmp_path, ("full", 0))
    tried = ["--try", "full", "loss.dt=2", "model.cmaam.beta=20", "--name", "tries"]
    only = ["--out", str(tmp_path), "--rows", "full", "--seeds", "0", "--resamplings", "50", *SETTINGS, *tried]
    assert ablate.main(only) == 0, capsys.readouterr()
    table = json.loads((tmp_path / "results" / "ablation_plain_1_val_tries.json").read_text())
    assert table["complete"]
    assert [row["row"] for row in table["rows"]] == ["full", "full+loss.dt=2+model.cmaam.beta=20"]
    assert list(table["rows"][1]["against"]) == ["full"]
    assert table["rows"][0]["seeds"] != table["rows"][1]["seeds"]
    made = (tmp_path / "runs" / "plain_1-full+loss.dt=2+model.cmaam.beta=20-seed0" / "config.yaml").read_text()
    assert "dt: 2" in made
    assert "beta: 20" in made
    assert "full (augmentation + IPCAM + CMAAM), loss.dt=2, model.cmaam.beta=20" in capsys.readouterr().out
    # one seed: no difference is called sure, whatever its interval
    page = (tmp_path / "results" / "ablation_plain_1_val_tries.md").read_text()
    assert ") ¹ |" in page
    assert "**" not in page


def test_a_configuration_that_would_be_judged_on_the_test_is_refused_before_anything_is_made(tmp_path, capsys):
    words = ["--out", str(tmp_path / "out"), "--config", "launch/configs/sysu_mm01.yaml"]
    assert ablate.main(words) == 2
    assert "got test and None" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--rows", "best"], "'best'"),
        (["--parallel", "0"], "--parallel, got 0"),
        (["--try", "best", "loss.dt=2"], "got best loss.dt=2"),
        (["--try", "full"], "got full"),
        (["--try", "full", "loss.dt"], "got full loss.dt"),
        (["--try", "full", "seed=5", "--name", "x"], "got seed=5"),
        (["--try", "full", "train.start_from=/a/b", "--name", "x"], "got train.start_from=/a/b"),
        (["--try", "full", "loss.dt=2"], "--name"),
        (["--name", "../x"], "'../x'"),
    ],
)
def test_wrong_words_are_refused(tmp_path, capsys, more, says):
    assert ablate.main(["--out", str(tmp_path), *more]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_says_what_the_trainings_begin_with(tmp_path, capsys):
    for setting, said in (
        ("train.epochs=3", "from scratch."),
        ("train.weights=/some/resnet50.pth", "from resnet50.pth."),
    ):
        assert ablate.main(["--out", str(tmp_path), "--only-tables", "--resamplings", "10", "--set", setting]) == 0
        page = (tmp_path / "results" / "ablation_plain_1_val.md").read_text()
        assert said in page
        assert "/some" not in page
