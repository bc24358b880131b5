"""Every kind of backbone of transformers with a few channels, for the tests that try all of them."""

from tacaf.model.tacafnet import ModelConfig

STAGES = {"hidden_sizes": [8, 8, 16, 24], "depths": [1, 1, 1, 2]}
GRID = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
WINDOWS = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 3}
# name: options, image height that divides into 6 parts, size of its layer-4 map
KINDS = {
    "convnext": (STAGES, 192, (6, 2)),
    "convnextv2": (STAGES, 192, (6, 2)),
    "dinov2": (GRID, 96, (12, 8)),
    "dinov2_with_registers": (GRID, 96, (12, 8)),
    "swin": (WINDOWS, 192, (6, 2)),
    "swinv2": (WINDOWS, 192, (6, 2)),
}
REENTERING = [name for name in KINDS if "swin" not in name]


def of(name, **more):
    return {"kind": "transformers", "name": name, "options": KINDS[name][0], **more}


def config_of(name, **changes):
    ipcam = {"node_width": 8, "attention_width": 4, "pair_width": 4}
    cmaam = {"consistency": name in REENTERING}
    return ModelConfig.model_validate({"backbone": of(name), "ipcam": ipcam, "cmaam": cmaam, **changes})
