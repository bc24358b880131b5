"""The list of settings: every key of a configuration, with the default and the type that the classes have."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import Field

from launch.train import main
from tacaf.train.config import Config, load_config
from tacaf.train.setting_list import REQUIRED, Section, explain, sections, type_text
from tacaf.vocabulary import InputError
from tests.train.test_config import CONFIGS

LISTED = {setting.name: setting for section in sections() for setting in section.settings}


def leaves(values: dict[str, Any], name: str = "") -> dict[str, Any]:
    """Dotted name -> value of everything in a configuration that is a setting, and not a section."""
    names = {section.name for section in sections()}
    found: dict[str, Any] = {}
    for key, value in values.items():
        below = f"{name}{key}"
        found |= leaves(value, f"{below}.") if below in names else {below: value}
    return found


def of_kind(kind: str) -> Section:
    [section] = [section for section in sections() if section.choice == f"kind: {kind}"]
    return section


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_key_of_a_configuration_is_listed(path):
    assert not leaves(load_config(path, []).model_dump(mode="json")).keys() - LISTED.keys()


def test_the_defaults_are_those_of_a_configuration_that_sets_nothing():
    config = Config.model_validate({"run": "runs/x", "data": {"shards": "shards"}})
    actual = leaves(config.model_dump(mode="python"))
    # The other backbones have settings of the same names, with defaults of their own.
    others = {setting.name for kind in ("efficientnet_lite", "transformers") for setting in of_kind(kind).settings}
    required = {name for name in actual if LISTED[name].default == REQUIRED}
    assert required - others == {"run", "data.shards"}
    for name in actual.keys() - required - others:
        value = actual[name]
        value = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
        assert (name, yaml.safe_load(LISTED[name].default)) == (name, value)


def test_every_setting_has_a_sentence_and_every_section_a_summary():
    assert not [name for name, setting in LISTED.items() if not setting.text]
    assert not [section.title for section in sections() if not section.text]


@pytest.mark.parametrize("kind", ["resnet", "efficientnet_lite", "transformers"])
def test_every_backbone_has_a_section(kind):
    assert {"model.backbone.kind"} < {setting.name for setting in of_kind(kind).settings}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (bool, "true or false"),
        (Literal["fp32", "bf16"], "fp32 or bf16"),
        (Literal["a", "b", "c"], "a, b or c"),
        (Annotated[int, Field(ge=1, le=1024)], "whole number, at least 1, at most 1024"),
        (Annotated[float, Field(gt=0, lt=1)], "number, above 0, below 1"),
        (Annotated[int, Field(ge=0, le=10**9)], "whole number, at least 0"),
        (str | None, "text, or null"),
        (tuple[int, ...], "list, each whole number"),
        (tuple[float, float], "list of 2, each number"),
        (dict[int, float], "mapping of whole number to number"),
    ],
)
def test_a_type_in_words(kind, text):
    assert type_text(kind) == text


def test_the_bounds_are_those_of_the_number_and_not_of_null():
    assert LISTED["train.steps_per_epoch"].kind == "whole number, at least 1, or null"


def test_a_section_or_one_setting_is_explained():
    text = explain("model.cmaam")
    assert "model.cmaam.beta" in text
    assert "50.0" in text
    assert "model.ipcam" not in text
    assert "model.cmaam.mask" not in explain("model.cmaam.beta")
    everything = explain("")
    assert all(name in everything for name in LISTED)


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("model.cmam", "model.cmaam"),
        ("train.epoch", "train.epochs"),
        ("zzz", "evaluation"),
        ("beta", "'model.cmaam.beta'"),
        ("model.cmaam.", "cmaam"),
    ],
)
def test_a_wrong_name_brings_the_nearest(wrong, near):
    with pytest.raises(InputError) as error:
        explain(wrong)
    assert repr(wrong) in str(error.value)
    assert near in str(error.value)


def test_the_command_needs_a_configuration_or_something_to_explain(capsys):
    assert main(["--explain", "model.cmaam"]) == 0
    assert "model.cmaam.beta" in capsys.readouterr().out
    assert main(["--explain", "model.cmam"]) == 2
    assert "'model.cmaam'" in capsys.readouterr().err
    assert main([]) == 2
    assert "--config" in capsys.readouterr().err
    assert main(["--explain", "--config", "x.yaml"]) == 2


@pytest.mark.slow
def test_settings_are_explained_without_starting_deepspeed():
    script = "import sys; from launch.train import main; main(['--explain']); sys.exit('deepspeed' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "model.cmaam.beta" in done.stdout
