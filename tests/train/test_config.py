"""Configuration files: inheritance, overrides, and one clear error for each thing that can be wrong."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tacaf.checkpoint import refuse_other
from tacaf.data.index import ShardIndex
from tacaf.train import engine
from tacaf.train.config import dump_config, load_config
from tacaf.train.engine import check_settings
from tacaf.train.finish import check_scoring
from tacaf.train.state import TrainState, completed, extension, must_match
from tacaf.vocabulary import InputError

CONFIGS = sorted((Path(__file__).parent.parent.parent / "launch" / "configs").glob("*.yaml"))
DEMO = next(path for path in CONFIGS if path.name == "demo.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_is_valid(path):
    load_config(path, [])


def test_base_then_file_then_overrides():
    config = load_config(DEMO, ["train.epochs=3", "loss.ic=0", "run=elsewhere"])
    assert config.data.augment.height == 96, "the file's own value"
    assert config.data.plan.identities_per_batch == 8, "the base's value"
    assert (config.train.epochs, config.loss.ic, config.run) == (3, 0, Path("elsewhere"))


def test_the_resolved_config_gives_the_same_run(tmp_path):
    config = load_config(DEMO, ["train.epochs=3"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml", []) == config


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.epoch=3", r"train\.epoch: no such key; did you mean 'epochs'\?"),
        ("model.cmaam.bta=3", r"model\.cmaam\.bta: no such key; did you mean 'beta'\?"),
        ("model.backbone.wdth=3", r"model\.backbone\.wdth: no such key; did you mean 'width'\?"),
        ("model.backbone.width=wide", r"^\S+: model\.backbone\.width: .*got 'wide'"),
        ("model.backbone.kind=timm", r"model\.backbone: expected kind: resnet, efficientnet_lite or transformers"),
        ("model.backbone={kind: transformers, name: dinov2, option: 1}", r"model\.backbone\.option: .*'options'\?"),
        ("model.backbone={kind: transformers, name: convnext}", r"height 96 with a map of 3 rows; use height 192"),
        ("nonsense=3", "nonsense: no such key; possible: run, .*--explain nonsense` looks in all sections"),
        ("train.epochs=many", r"train\.epochs: .*got 'many'"),
        ("train.epochs", "expected key=value"),
        ("seed.a=1", "'seed' is a value, not a section"),
        ("data.plan.identities_per_batch=7", "multiple of pair_group"),
        ("data.plan.lanes=3", "4 pair groups"),
        ("data.plan.identities_per_batch=1", "greater than or equal to 2"),
        ("data.augment.height=112", "divides into the part levels"),
        ("train.choose=validation", r"expected data\.split 'train'"),
        ("evaluation.protocol=sysu", "expected protocol sysu_mm01, regdb"),
        ("evaluation.modes=[outdoor]", "expected mode all_search or indoor_search"),
        ("evaluation.shots=[5]", "expected shots 1 or 10"),
        ("evaluation.gallery_draw=official", "expected rand_perm_cam.mat"),
        ("deepspeed.bf16={enabled: true}", r"deepspeed\.bf16: expected no value"),
    ],
)
def test_wrong_values_are_named(override, says):
    with pytest.raises(InputError, match=says):
        load_config(DEMO, [override])


def test_a_mistake_is_where_it_was_typed(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"base: {DEMO}\nloss: {{tripplet: wrt}}\n")
    with pytest.raises(InputError, match=r"mine\.yaml: loss\.tripplet: no such key; did you mean 'triplet'"):
        load_config(file, ["train.epochs=2"])
    with pytest.raises(InputError, match=r"mine\.yaml: loss\.tripplet: .*; train\.epoch: "):
        load_config(file, ["train.epoch=2"])
    for override in ("loss.tripplet=wrt", "loss={tripplet: wrt}"):
        with pytest.raises(InputError, match=r"^--set: loss\.tripplet: no such key; did you mean 'triplet'"):
            load_config(DEMO, [override])


def test_fused_norms_are_refused_among_definitions():
    with pytest.raises(InputError, match=r"model.*fused_norm: expected kernels: auto, got reference"):
        load_config(DEMO, ["model.fused_norm=true", "model.kernels=reference"])
    load_config(DEMO, ["model.fused_norm=true"])


def test_a_checkpoint_from_before_a_setting_existed_is_resumed_with_its_default(tmp_path):
    config, index = load_config(DEMO, []), SimpleNamespace(sha256="0")
    saved = must_match(config, index)
    del saved["loss.triplet_unit"], saved["train.compile"]
    refuse_other(completed(saved, config), must_match(config, index), tmp_path)
    changed = load_config(DEMO, ["loss.triplet_unit=distance"])
    with pytest.raises(InputError, match=r"run\. loss\.triplet_unit: .* has 'absolute', this run 'distance'\. R"):
        refuse_other(completed(saved, changed), must_match(changed, index), tmp_path)
    kept = must_match(changed, index)
    with pytest.raises(InputError, match=r"loss\.triplet_unit: the checkpoint has 'distance'"):
        refuse_other(completed(kept, config), saved | {"loss.triplet_unit": "absolute"}, tmp_path)


def test_more_epochs_are_told_by_what_they_do_to_the_schedule():
    saved = {"train.epochs": 3, "ranks": 1, "state": TrainState(epoch=2, step=1, global_step=9)._asdict()}
    longer = load_config(DEMO, ["train.epochs=5"])
    assert "stretched" in str(extension(saved, longer))
    assert "epoch 2" in str(extension(saved, longer))
    assert "milestones" in str(extension(saved, load_config(DEMO, ["train.epochs=5", "optim.schedule=milestones"])))
    for epochs in (2, 3):
        assert extension(saved, load_config(DEMO, [f"train.epochs={epochs}"])) is None
    assert extension({}, longer) is None


def test_a_missing_value_is_named(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"run": "x"}))
    with pytest.raises(InputError, match="data: "):
        load_config(tmp_path / "config.yaml", [])


def test_files_that_are_no_config(tmp_path):
    deep = tmp_path / "-".join(["a folder with a long name"] * 5)
    for folder in (tmp_path, deep):
        with pytest.raises(InputError, match=r"absent\.yaml does not exist"):
            load_config(folder / "absent.yaml", [])
    path = tmp_path / "config.yaml"
    path.write_text("a: [1")
    with pytest.raises(InputError, match="expected YAML"):
        load_config(path, [])
    path.write_text("just words")
    with pytest.raises(InputError, match="expected a mapping"):
        load_config(path, [])
    path.write_text("base: config.yaml")
    with pytest.raises(InputError, match=r"`base` .*: .*/config\.yaml;"):
        load_config(path, [])


ELSEWHERE = {
    "splits": ["evaluation.splits=/elsewhere/exp", "evaluation.gallery_draw=official"],
    "query_list": [
        "evaluation.protocol=generic",
        "evaluation.query_list=/elsewhere/query.txt",
        "evaluation.gallery_list=/elsewhere/gallery.txt",
    ],
}


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_a_configuration_is_read_without_the_files_it_names_and_a_training_refuses_to_start(kind, sysu_shards):
    config = load_config(DEMO, [f"data.shards={sysu_shards}", *ELSEWHERE[kind]])
    assert str(getattr(config.evaluation, kind)).startswith("/elsewhere/")
    with pytest.raises(InputError, match=f"{getattr(config.evaluation, kind)}"):
        check_scoring(config, ShardIndex.open(sysu_shards))


def test_a_configuration_is_read_without_the_monitor_it_names_and_a_training_refuses_to_start(monkeypatch):
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    check_settings(load_config(DEMO, ["train.watch=[csv_monitor]"]))
    config = load_config(DEMO, ["train.watch=[wandb]"])
    with pytest.raises(InputError, match=r"train\.watch: .*wandb"):
        check_settings(config)
