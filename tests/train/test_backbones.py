"""A backbone of transformers on the whole road: two ranks under ZeRO-3 train as one does, and the model is scored."""

import json

import numpy as np
import torch
from safetensors.numpy import load_file

from tacaf.model.file import load_model
from tacaf.vocabulary import Modality
from tests.train.tiny_runs import steps_of, train

DINO = (
    "model.backbone={kind: transformers, name: dinov2, options: {hidden_size: 16, num_hidden_layers: 3,"
    " num_attention_heads: 2, image_size: 96, patch_size: 8}}"
)
SHORT = (
    "train.epochs=1",
    "evaluation.shots=[1]",
    "evaluation.modes=[all_search]",
    "optim.kind=sgd",
    "optim.new_rate=0.1",
    "optim.backbone_rate=0.01",
)


def test_two_ranks_under_zero_3_train_as_one_and_the_model_file_is_enough(sysu_shards, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    train(sysu_shards, one, DINO, *SHORT)
    train(sysu_shards, two, DINO, *SHORT, "deepspeed={zero_optimization: {stage: 3}}", ranks=2)
    expected, found = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert np.abs(found[name] - tensor).max() <= 1e-3 * np.abs(tensor).max() + 1e-7, name
    assert len(steps_of(one)) == len(steps_of(two))
    model, card = load_model(two / "model.safetensors")
    with torch.inference_mode():
        images = torch.randn(2, 3, card.height, card.width)
        assert model.embed(images, Modality.INFRARED).shape == (2, 16 + 10 * 16)
    (result,) = [json.loads(path.read_text()) for path in (two / "results").glob("*.json")]
    assert result["embedding_width"] == 16 + 9 * 16  # without the global node
