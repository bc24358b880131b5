"""launch/evaluate.py as a user types it: 1, 2 and 3 ranks, RegDB's splits, re-ranking, a generic set, wrong input."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from launch import export
from launch.evaluate import main
from shards.pedestrians.synth import synthesise
from shards.sources import manifest, regdb
from tacaf.child_processes import child_environment
from tacaf.data.index import ShardIndex
from tacaf.evaluation.config import EvaluationConfig
from tacaf.evaluation.features import load_features
from tacaf.evaluation.results import read_result
from tacaf.model.file import write_model
from tacaf.report.report import write_report
from tacaf.train import engine
from tacaf.train.config import dump_config, load_config
from tacaf.train.leak import refuse_leak
from tacaf.train.new_model import build_model, model_facts
from tacaf.vocabulary import InputError
from tests.forked import run_ranks

pytestmark = pytest.mark.slow  # starts a rank in this process, which builds DeepSpeed's op

ROOT = Path(__file__).parent.parent.parent
TINY = (
    "model.backbone={width: 8, blocks: [1, 1, 1, 1]}",
    "model.ipcam={node_width: 16, attention_width: 8, pair_width: 8}",
)


def made_run(folder: Path, shards: Path, split: str = "trainval", protocol: str = "sysu_mm01", seed: int = 0) -> Path:
    """A run folder with an untrained model that says it was trained on this list."""
    folder.mkdir(parents=True)
    config = load_config(
        ROOT / "launch" / "configs" / "demo.yaml",
        [
            *TINY,
            f"run={folder}",
            f"data.shards={shards}",
            f"data.split={split}",
            f"seed={seed}",
            f"evaluation.protocol={protocol}",
        ],
    )
    index = ShardIndex.open(shards)
    identities = len(index.pids_of(split))
    model, _ = build_model(config, identities)
    facts = model_facts(config, identities, index, "last epoch (0)")
    write_model(folder / "model.safetensors", model.state_dict(), facts)
    (folder / "config.yaml").write_text(dump_config(config))
    return folder


def evaluate(*words: object) -> int:
    return main([str(word) for word in words])


def results_of(folder: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@pytest.fixture(scope="module")
def regdb_shards(tmp_path_factory) -> Path:
    raw = tmp_path_factory.mktemp("raw") / "regdb"
    synthesise(raw, layout="regdb", identities=8, seed=3, images_per_camera=2, height=96, workers=1)
    return regdb.pack(raw, tmp_path_factory.mktemp("shards") / "regdb").folder


def test_any_number_of_ranks_writes_the_same_files(sysu_shards, tmp_path):
    """A rank's batches hold other images than one process's, so a feature's last bits differ (1.5e-7 seen); nothing
    else does.
    """
    run, found = made_run(tmp_path / "run", sysu_shards), {}
    for ranks in (1, 2, 3):
        own = ["--features", tmp_path / f"{ranks}.npz", "--json", tmp_path / f"{ranks}.json"]
        command = [
            ROOT / "launch" / "evaluate.py",
            "--run",
            run,
            "--shards",
            sysu_shards,
            "--protocol",
            "sysu_mm01",
            "--batch-size",
            5,
            "--flip",
            *own,
        ]
        words, environment = [str(word) for word in command], child_environment(OMP_NUM_THREADS="1")
        done = run_ranks(words, ranks, environment, fork=ranks != 2)  # two of them by torchrun
        assert done.returncode == 0, done.stderr[-3000:]
        found[ranks] = load_features(tmp_path / f"{ranks}.npz"), json.loads((tmp_path / f"{ranks}.json").read_text())
    features, results = found.pop(1)
    facts = np.stack([features.pid, features.modality, features.camid, features.number], axis=1)
    assert len(np.unique(facts, axis=0)) == len(facts), "each image once"
    assert np.array_equal(np.lexsort(facts.T[::-1]), np.arange(len(facts))), "in the order of the set"
    assert len(facts) == len(ShardIndex.open(sysu_shards).rows_of(np.unique(features.pid)))
    assert results[0]["flip"] is True
    for others, scores in found.values():
        for name in ("pid", "camid", "modality", "number"):
            assert np.array_equal(getattr(others, name), getattr(features, name)), name
        assert np.abs(others.features - features.features).max() < 1e-6
        assert scores == results


def test_a_regdb_model_is_scored_on_its_own_split_and_several_in_one_table(regdb_shards, tmp_path, capsys):
    runs = [made_run(tmp_path / f"run{n}", regdb_shards, f"train_{n}", "regdb", n) for n in (1, 2, 3)]
    base = ["--shards", regdb_shards, "--protocol", "regdb"]
    assert evaluate("--run", *runs, *base, "--json", tmp_path / "out.json") == 0
    assert "split test_1 to test_3" in capsys.readouterr().out
    table = results_of(tmp_path)
    assert set(table) == {"out", "regdb-visible_to_infrared-3splits", "regdb-infrared_to_visible-3splits"}
    assert table["out"] == [table[f"regdb-{way}-3splits"] for way in ("visible_to_infrared", "infrared_to_visible")]
    one = table["regdb-visible_to_infrared-3splits"]
    assert one["split"] == ["test_1", "test_2", "test_3"]
    assert [facts["split"] for facts in one["trained_on"]] == ["train_1", "train_2", "train_3"]
    own = [results_of(run / "results")["regdb-visible_to_infrared"] for run in runs]
    assert [result["split"] for result in own] == one["split"]
    assert one["trials"] == [trial for result in own for trial in result["trials"]]
    assert one["mean"]["mAP"] == pytest.approx(np.mean([result["mean"]["mAP"] for result in own]))
    assert one["std"]["mAP"] == pytest.approx(np.std([result["mean"]["mAP"] for result in own], ddof=1))

    before = results_of(tmp_path)
    for words, says in (
        (["--run", runs[0], *base, "--split", "test_2"], "score the split that belongs to this model, test_1"),
        (["--run", runs[0], runs[0], *base], "expected one model per split, got 2 trained on 'train_1'"),
        (["--run", *runs, *base, "--split", "test_1"], "expected neither --split nor --features with 3 runs"),
        (["--run", *runs, "--shards", regdb_shards, "--protocol", "generic"], "expected one run under generic, got 3"),
        (["--run", tmp_path, *base], f"{tmp_path / 'model.safetensors'} does not exist"),
        (["--run", runs[0], *base, "--split", "test_99"], "expected a split among"),
        (["--run", runs[0], *base, "--direction", "up"], "expected direction visible_to_infrared or"),
        (["--run", runs[0], *base, "--exclude", "camera"], "expected no --exclude and no --locations under regdb"),
        (["--run", runs[0], *base, "--rerank", "20"], "expected nothing or K1 K2 LAMBDA"),
    ):
        assert evaluate(*words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert says in error
    assert results_of(tmp_path) == before


def test_a_run_is_scored_without_the_files_and_packages_that_its_configuration_names(
    sysu_shards, tmp_path, monkeypatch
):
    run = made_run(tmp_path / "run", sysu_shards)
    config = load_config(
        run / "config.yaml",
        ["evaluation.splits=/elsewhere/exp", "evaluation.gallery_draw=official", "train.watch=[wandb]"],
    )
    (run / "config.yaml").write_text(dump_config(config))
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    words = ("--mode", "all_search", "--shots", 1)
    assert evaluate("--run", run, "--shards", sysu_shards, "--protocol", "sysu_mm01", *words) == 0
    assert set(results_of(run / "results")) == {"sysu_mm01-all_search-1shot-literature"}


def test_leakage_is_seen_in_a_set_that_was_packed_again(regdb_shards):
    index = ShardIndex.open(regdb_shards)
    trained_on = {"set": index.name, "sha256": "of an older packing", "split": "train_1"}
    refuse_leak(index, trained_on, index.pids_of("test_1"))
    with pytest.raises(InputError, match="'train_1' of the set 'regdb'"):
        refuse_leak(index, trained_on, index.pids_of("test_2"))
    with pytest.raises(InputError, match="train_1"):
        refuse_leak(replace(index, splits={"test": [1]}), trained_on, np.array([1]))
    other = {**trained_on, "set": "other people"}
    refuse_leak(index, other, index.pids_of("test_2"))


def test_reranked_results_have_a_file_of_their_own(sysu_shards, tmp_path, capsys):
    run = made_run(tmp_path / "run", sysu_shards)
    base = ["--run", run, "--shards", sysu_shards, "--protocol", "sysu_mm01", "--mode", "all_search", "--shots", 1]
    for words in ([], ["--rerank"], ["--rerank", 4, 2, 0.5]):
        assert evaluate(*base, *words) == 0
    found = results_of(run / "results")
    plain, again = found["sysu_mm01-all_search-1shot-literature"], found["sysu_mm01-all_search-1shot-literature-rerank"]
    assert plain["rerank"] is False
    assert again["rerank"] == {"k1": 4, "k2": 2, "lambda": 0.5}, "the last one written"
    assert again["trials"] != plain["trials"]
    assert "re-ranked (k1 20, k2 6, lambda 0.3)" in capsys.readouterr().out


def test_the_embedding_is_the_runs_own_and_another_ones_result_has_a_file_of_its_own(sysu_shards, tmp_path):
    run = made_run(tmp_path / "run", sysu_shards)
    base = ["--run", run, "--shards", sysu_shards, "--protocol", "sysu_mm01", "--mode", "all_search", "--shots", 1]
    for words in ([], ["--embedding", "full"]):
        assert evaluate(*base, *words) == 0
    found = results_of(run / "results")
    assert {name: result["embedding"] for name, result in found.items()} == {
        "sysu_mm01-all_search-1shot-literature": "global_and_parts",
        "sysu_mm01-all_search-1shot-literature-full": "full",
    }


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape"])
def test_a_model_file_whose_weights_do_not_match_is_refused(damage, sysu_shards, tmp_path, capsys):
    """Else a layer left at random would be scored without a word."""
    path = made_run(tmp_path / "run", sysu_shards) / "model.safetensors"
    with safe_open(path, "pt") as file:
        facts, state = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = "backbone.layer3.0.bn1.bias"
    whole = state.pop(name)
    if damage != "missing":
        state["backbone.layer9.bias" if damage == "unknown" else name] = whole[:-1].clone()
    if damage == "unknown":
        state[name] = whole
    save_file(state, path, facts)
    assert evaluate("--run", path.parent, "--shards", sysu_shards, "--protocol", "sysu_mm01") == 2
    assert "got 1 that are missing, unknown or of another shape (first backbone.layer" in capsys.readouterr().err
    assert not (path.parent / "results").exists()


@pytest.fixture(scope="module")
def listed_shards(raw_sysu, tmp_path_factory) -> Path:
    """The SYSU-MM01 images as a manifest."""
    folder = tmp_path_factory.mktemp("manifest")
    lines = ["path,pid,modality,camid"]
    for path in sorted(raw_sysu.glob("cam*/*/*.jpg")):
        camera = path.parts[-3][3:]
        modality = "infrared" if camera in "36" else "visible"
        lines.append(f"{path.relative_to(raw_sysu)},{int(path.parts[-2])},{modality},{camera}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return manifest.pack(raw_sysu, folder / "shards", listed=folder / "list.csv", name="mine").folder


def test_a_set_of_ones_own(listed_shards, tmp_path, capsys):
    run = made_run(tmp_path / "run", listed_shards, "train", "generic")
    base = ["--run", run, "--shards", listed_shards, "--protocol", "generic"]
    features = tmp_path / "F.npz"
    assert evaluate(*base, "--features", features) == 0
    assert set(results_of(run / "results")) == {"generic-infrared_to_visible", "generic-visible_to_infrared"}
    assert evaluate(*base, "--direction", "visible_to_visible", "--exclude", "camera") == 0
    assert results_of(run / "results")["generic-visible_to_visible"]["exclusion"] == "same camera"
    held = load_features(features)
    keys = [
        f"visible_{held.pid[row]}_c{held.camid[row]}_{held.number[row]}" for row in np.flatnonzero(held.modality == 0)
    ]
    (tmp_path / "q").write_text("\n".join(keys[::2]))
    (tmp_path / "g").write_text("\n".join(keys[1:]))
    assert evaluate(*base, "--query-list", tmp_path / "q", "--gallery-list", tmp_path / "g") == 0
    listed = results_of(run / "results")["generic-listed"]
    assert (listed["queries"], listed["gallery"]) == (len(keys[::2]), len(keys) - 1)
    assert listed["exclusion"] == "the query image itself"
    capsys.readouterr()
    assert evaluate(*base, "--exclude", "location") == 2
    assert "--locations together" in capsys.readouterr().err


def test_a_result_of_another_set_has_a_name_of_its_own_and_replaces_nothing(
    sysu_shards, listed_shards, tmp_path, capsys
):
    run = made_run(tmp_path / "run", sysu_shards)
    words = ["--run", run, "--protocol", "generic", "--direction", "infrared_to_visible"]
    assert evaluate(*words, "--shards", sysu_shards) == 0
    own = run / "results" / "generic-infrared_to_visible.json"
    before = own.read_bytes()
    other = ShardIndex.open(listed_shards)
    for more in ([], ["--json", tmp_path / "x.json"]):
        assert evaluate(*words, "--shards", listed_shards, *more) == 0
    name = f"generic-infrared_to_visible-on-mine-{other.sha256[:8]}"
    assert set(results_of(run / "results")) == {own.stem, name}
    assert own.read_bytes() == before
    assert results_of(run / "results")[name]["scored_on"]["sha256"] == other.sha256
    write_report(run, EvaluationConfig())
    page = (run / "report.html").read_text()
    first = json.loads(before)
    assert f"Rank-1 <b>{100 * first['mean']['rank1']:.1f} %</b>" in page
    assert page.count("on the set mine") == 1

    # What was there before such names, or under other options, stays too.
    own.write_text(json.dumps(results_of(run / "results")[name]))
    kept = own.read_bytes()
    for _ in range(2):
        assert evaluate(*words, "--shards", sysu_shards) == 0
    assert own.read_bytes() == kept
    assert evaluate(*words, "--shards", sysu_shards, "--metric", "euclidean") == 0
    found = results_of(run / "results")
    assert set(found) == {own.stem, name, f"{own.stem}-2", f"{own.stem}-3"}
    assert found[f"{own.stem}-2"]["mean"] == first["mean"]
    assert found[f"{own.stem}-3"]["metric"] == "euclidean"


def test_a_public_set_is_not_scored_as_another_one(sysu_shards, regdb_shards, tmp_path, capsys):
    run = made_run(tmp_path / "run", sysu_shards)
    for shards, protocol, right in (
        (sysu_shards, "regdb", "sysu_mm01"),
        (sysu_shards, "llcm", "sysu_mm01"),
        (regdb_shards, "sysu_mm01", "regdb"),
    ):
        split = ["--split", "test_1"] if shards == regdb_shards else []
        assert evaluate("--run", run, "--shards", shards, "--protocol", protocol, *split) == 2
        assert f"expected the protocol {right}" in capsys.readouterr().err
    assert not (run / "results").exists()


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "null", '{"protocol": 3}', '{"a": NaN}', "[" * 9000, b"\xff"], ids=str
)
def test_garbage_among_the_results_is_named(sysu_shards, tmp_path, capsys, content):
    run = made_run(tmp_path / "run", sysu_shards)
    (run / "results").mkdir()
    path = run / "results" / "generic.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for read in (lambda: write_report(run, EvaluationConfig()), lambda: read_result(path)):
        with pytest.raises(InputError, match=r"generic\.json"):
            read()


def test_a_changed_byte_of_the_model_is_noticed(sysu_shards, tmp_path, capsys):
    run = made_run(tmp_path / "run", sysu_shards)
    data = bytearray((run / "model.safetensors").read_bytes())
    data[-5000] ^= 4
    (run / "model.safetensors").write_bytes(data)
    assert evaluate("--run", run, "--shards", sysu_shards, "--protocol", "sysu_mm01") == 2
    assert export.main(["--run", str(run), "--to", "safetensors"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert all("model.safetensors" in error for error in errors)
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "model.safetensors"]
