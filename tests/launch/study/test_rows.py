"""The rows of the two studies: one table, names that mean what they say, and which rows differ from the full method."""

from pathlib import Path

import pytest

from launch import ablate, reproduce
from launch.study.rows import CORE, ROWS, choose_rows, varied_row
from tacaf.train.config import load_config
from tacaf.vocabulary import InputError

CONFIGS = Path("launch/configs")
ABLATION = CONFIGS / "ablation.yaml"


@pytest.mark.parametrize(
    ("name", "parts"),
    {
        "baseline": set(),
        "aug": {"aug"},
        "aug_ipcam": {"aug", "ipcam"},
        "aug_cmaam": {"aug", "cmaam"},
        "full": {"aug", "ipcam", "cmaam"},
        "ipcam": {"ipcam"},
        "cmaam": {"cmaam"},
        "both": {"ipcam", "cmaam"},
    }.items(),
)
def test_a_name_says_which_parts_are_on(name, parts):
    config = load_config(ABLATION, [*ROWS[name].settings, "run=unused"])
    switches = {
        "aug": config.data.plan.channel_augment,
        "ipcam": config.model.ipcam.enabled,
        "cmaam": config.model.cmaam.enabled,
    }
    assert {part for part, on in switches.items() if on} == parts


def test_both_commands_train_the_same_by_the_same_name(tmp_path):
    out = ["--out", str(tmp_path)]
    study = ablate.study_of(ablate.parse(out))
    assert tuple(study.rows) == CORE
    assert study.rows == reproduce.study_of(reproduce.parse(["llcm", "--root", str(tmp_path), *out])).rows


def test_every_row_names_rows_that_it_is_compared_with():
    for name, row in ROWS.items():
        assert row.name == name
        assert set(row.against) <= ROWS.keys() - {name}


@pytest.mark.slow
def test_all_rows_are_those_that_differ_from_the_full_method(capsys):
    def left_out(*settings, file=ABLATION) -> set[str]:
        return ROWS.keys() - choose_rows(["all"], file, settings).keys()

    # the small recipe goes without consistency; without the dense triplet nothing would be left of CMAAM
    assert left_out() == {"no_consistency", "no_dense"}
    assert left_out("model.ipcam.ring=false", file=CONFIGS / "sysu_mm01.yaml") == {"norm_mask", "no_ring"}
    assert "no_ring" in left_out("model.ipcam.enabled=false")
    assert not capsys.readouterr().err
    # a backbone that cannot go on from a layer-3 map has no identity consistency there
    swin = ["model.backbone={kind: transformers, name: swin, options: {window_size: 3}}", "data.augment.height=192"]
    assert left_out(*swin) == {"no_consistency", "no_dense", "consistency"}
    assert "row consistency left out: " in capsys.readouterr().err
    assert tuple(choose_rows(["core"], ABLATION, swin)) == CORE


def test_a_varied_row_is_compared_with_its_own_and_named_by_its_settings():
    row = varied_row("aug_cmaam", "loss.dt=2")
    assert row.name == "aug_cmaam+loss.dt=2"
    assert row.settings == (*ROWS["aug_cmaam"].settings, "loss.dt=2")
    assert row.against == ("aug_cmaam", "aug", "baseline")
    for words in (("best", "loss.dt=2"), ("full",), ("full", "loss.dt"), ("full", "seed=5"), ("full", "a.b=/x")):
        with pytest.raises(InputError, match=words[-1]):
            varied_row(*words)
