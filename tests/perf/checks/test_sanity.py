"""The four checks: their figures on answers known beforehand, and the whole on a set the size of a thimble."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from perf.checks import matching, sanity
from shards.pedestrians.benchmarks import BENCHMARKS
from shards.pedestrians.synth import synthesise
from shards.sources.sysu_mm01 import pack
from tacaf.data.index import ShardIndex
from tacaf.evaluation.features import FeatureSet
from tacaf.train.config import dump_config
from tacaf.vocabulary import InputError, Modality
from tests.train.finished import write_model

HEIGHT, WIDTH = 6, 3


def matching_to(target) -> torch.Tensor:
    """Row by row, all of a position at `target(row, column)`."""
    found = torch.zeros(HEIGHT * WIDTH, HEIGHT * WIDTH)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            y, x = target(row, column)
            found[row * WIDTH + column, min(max(y, 0), HEIGHT - 1) * WIDTH + min(max(x, 0), WIDTH - 1)] = 1
    return found


def test_matches_knows_right_near_and_wrong_answers():
    everywhere = torch.ones(HEIGHT, WIDTH)
    right = matching.matches(matching_to(lambda y, x: (y + 2, x)), everywhere, everywhere, 2)
    assert (right["within"], right["exact"], right["still"]) == (1, 1, 0)
    near = matching.matches(matching_to(lambda y, x: (y + 1, x)), everywhere, everywhere, 2)
    assert (near["within"], near["exact"]) == (1, 0)
    still = matching.matches(matching_to(lambda y, x: (y, x)), everywhere, everywhere, 2)
    assert (still["within"], still["exact"]) == (0, 0)
    assert matching.matches(matching_to(lambda y, x: (y, x)), everywhere, everywhere, 1)["still"] == 1
    # up as well as down, and only where there is a person in both
    up = matching.matches(matching_to(lambda y, x: (y - 2, x)), everywhere, everywhere, -2)
    assert up["exact"] == 1
    assert matching.matches(matching_to(lambda y, x: (y, x)), everywhere, torch.zeros(HEIGHT, WIDTH), 2) == {}


def test_chance_is_what_random_answers_reach():
    person = torch.zeros(HEIGHT, WIDTH)
    person[:, 1] = 1
    draw = torch.Generator().manual_seed(0)
    shares = [
        matching.matches(torch.rand(HEIGHT * WIDTH, HEIGHT * WIDTH, generator=draw), person, person, 2)
        for _ in range(2000)
    ]
    found = matching.spread(shares)
    assert found["within"][0] == pytest.approx(found["chance"][0], abs=4 * found["within"][1])
    assert found["exact"][0] == pytest.approx(1 / 18, abs=4 * found["exact"][1])
    # row 4 of 6 with its neighbours is half of the map, row 6 a third
    assert found["chance"][0] == pytest.approx((3 * 0.5 + 1 / 3) / 4)


def test_verdicts():
    def figures(within, chance=0.5, still=0.0):
        return {"within": (within, 0.01), "chance": (chance, 0.0), "still": (still, 0.0)}

    assert matching.finds_more(figures(0.6), figures(0.8))
    for after in (figures(0.55), figures(0.8, chance=0.85), figures(0.8, still=0.9)):
        assert not matching.finds_more(figures(0.6), after)
    assert sanity.at_chance([0.009, 0.011, 0.010, 0.012], 0.01)
    assert not sanity.at_chance([0.09, 0.11, 0.10, 0.12], 0.01)
    assert sanity.learned_nothing(0.02, 0.03)
    assert not sanity.learned_nothing(0.2, 0.03)


def made(gap: float, seed: int = 0) -> FeatureSet:
    """20 identities, 6 images each, half infrared; the modalities lie `gap` apart."""
    draw = np.random.default_rng(seed)
    pid = np.repeat(np.arange(1, 21), 6)
    modality = np.tile([0, 0, 0, 1, 1, 1], 20).astype(np.uint8)
    features = draw.normal(size=(20, 16))[pid - 1] + 0.1 * draw.normal(size=(120, 16))
    features[:, 0] += gap * (modality == Modality.INFRARED.code)
    camid = np.where(modality == Modality.INFRARED.code, 6, 1)
    return FeatureSet(features.astype(np.float32), pid, camid, modality, np.tile([1, 2, 3, 1, 2, 3], 20))


def test_the_probe_sees_a_gap_and_nothing_where_there_is_none():
    halves = [np.random.default_rng(seed) for seed in range(10)]
    assert np.mean([sanity.probe(made(6.0), half) for half in halves]) > 0.9
    assert np.mean([sanity.probe(made(0.0), half) for half in halves]) == pytest.approx(0.5, abs=0.1)


def test_permuted_queries_are_at_chance_and_keep_their_images_together():
    features = made(0.0)
    assert sanity.rank1(features)[0] > 0.95
    found = [sanity.permuted_queries(features, np.random.default_rng(seed)) for seed in range(10)]
    assert np.mean([sanity.rank1(one)[0] for one in found]) == pytest.approx(1 / 20, abs=0.08)
    visible = features.modality == Modality.VISIBLE.code
    assert (found[0].pid[visible] == features.pid[visible]).all()
    names = {(int(old), int(new)) for old, new in zip(features.pid[~visible], found[0].pid[~visible], strict=True)}
    assert len(names) == len({old for old, _ in names}) == len({new for _, new in names}) == 20


@pytest.fixture(scope="module")
def thimble(tmp_path_factory):
    """A raw set of 20 identities, its shards, and a run of 12 steps that never was."""
    out = tmp_path_factory.mktemp("sanity")
    synthesise(out / "raw", layout="sysu_mm01", identities=20, seed=3, images_per_camera=3, height=96, workers=1)
    pack(out / "raw", out / "shards")
    identities = len((out / "raw/exp/train_id.txt").read_text().split(","))
    write_model(
        out / "run",
        out / "shards",
        identities,
        "data.split=train",
        "train.epochs=1",
        "train.steps_per_epoch=2",
        "evaluation.gallery_draw=literature",
    )
    return out


@pytest.mark.slow
@pytest.mark.parametrize("check", sanity.CHECKS)
def test_a_check_writes_its_figures_and_a_verdict(thimble, monkeypatch, capsys, check):
    small = replace(BENCHMARKS["plain_1"], height=96)
    monkeypatch.setitem(sanity.BENCHMARKS, "plain_1", small)
    monkeypatch.setattr(sanity, "OVERFIT_STEPS", 2)
    words = [
        "--run",
        thimble / "run",
        "--shards",
        thimble / "shards",
        "--raw",
        thimble / "raw",
        "--out",
        thimble / "work",
    ]
    words += ["--checks", check, "--people", 4, "--json", thimble / f"{check}.json"]
    status = sanity.main([str(word) for word in words])
    found = json.loads((thimble / f"{check}.json").read_text())
    (one,) = found["checks"].values()
    assert status == (0 if one["holds"] else 1), capsys.readouterr()
    assert found["runs"] == ["run"]
    assert one["rule"] in capsys.readouterr().out
    if check == "correspondence":
        (run,) = one["runs"].values()
        assert set(run) == {"beta", *(f"layer {layer}, {time}" for layer in (3, 4) for time in ("before", "after"))}
    if check == "shuffled":
        before = sanity.listed(thimble / "raw")
        after = (thimble / "work" / "shuffled.csv").read_text().splitlines()[1:]
        pids = [int(line.split(",")[1]) for line in after]
        train = [row["split"] == "train" for row in before]
        assert sorted(pids) == sorted(row["pid"] for row in before)
        changed = [row["pid"] != pid for row, pid in zip(before, pids, strict=True)]
        assert np.mean([one for one, own in zip(changed, train, strict=True) if own]) > 0.5
        assert not any(one for one, own in zip(changed, train, strict=True) if not own)
        assert one["chance"] == pytest.approx(1 / 4, abs=0.05)  # 4 identities validate
    if check == "overfit":
        assert one["identities"] == 8
        assert one["holds"] == (one["rank1"] == 1)


def test_an_unfinished_run_and_a_folder_without_a_set_are_refused(thimble, tmp_path, capsys):
    words = [
        "--run",
        str(tmp_path),
        "--shards",
        str(thimble / "shards"),
        "--raw",
        str(thimble / "raw"),
        "--out",
        "work",
    ]
    assert sanity.main(words) == 2
    assert "is not a finished run" in capsys.readouterr().err
    words[5] = str(tmp_path)
    assert sanity.main(words) == 2
    assert "exp/val_id.txt" in capsys.readouterr().err
    assert sanity.main([*words, "--people", "1"]) == 2
    assert "--people" in capsys.readouterr().err


@pytest.mark.slow
def test_what_another_run_left_in_the_work_folder_is_not_taken(thimble, sysu_shards, tmp_path):
    rows = sanity.listed(thimble / "raw")
    rows = [row for row in rows if row["split"] == "val"]
    shards = sanity.pack(rows, thimble / "raw", tmp_path / "some")
    assert sanity.pack(rows, thimble / "raw", tmp_path / "some") == shards
    with pytest.raises(InputError, match="some"):
        sanity.pack(rows[1:], thimble / "raw", tmp_path / "some")
    subject = sanity.load_subject(thimble / "run", ShardIndex.open(thimble / "shards"), BENCHMARKS["plain_1"], 2)
    (tmp_path / "begun").mkdir()
    other = subject.config.model_copy(update={"seed": 9})
    (tmp_path / "begun" / "config.yaml").write_text(dump_config(other))
    with pytest.raises(InputError, match=r"data\.shards"):
        sanity.train(subject, shards, tmp_path / "begun")
    other_set = ShardIndex.open(sysu_shards)
    with pytest.raises(InputError, match=f"got {other_set.name} with {other_set.sha256[:12]}"):
        sanity.load_subject(thimble / "run", other_set, BENCHMARKS["plain_1"], 2)
