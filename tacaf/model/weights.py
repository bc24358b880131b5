"""Weights from files: ImageNet ResNets into the backbone, or a trained TACAFNet but for its classifiers.

Loading is strict: a tensor that is missing, unknown or of another shape raises before the model has changed, and a
report says what was taken. Nothing but tensors and plain values is unpickled.
"""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tacaf.files import reason_of, sha256_of, shown
from tacaf.model.backbone import Backbone
from tacaf.model.tacafnet import ModelConfig, TacafNet
from tacaf.tensors import TensorFile, not_finite
from tacaf.vocabulary import InputError

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
STEM = ("conv1.", "bn1.")
IMAGENET_HEAD = ("fc.", "classifier.")
CLASSIFIER = "classifier"  # in the name of every tensor whose shape depends on the training identities
_WRAPPINGS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
_NOT_WEIGHTS = {
    b"<": "a web page (HTML or XML): open its address in a browser and fetch the file itself",
    b"{": "JSON: the weights are in another file",
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself with `git lfs pull`",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"\x93numpy": "a NumPy array: save the weights as .safetensors",
    b"\x89hdf": "an HDF5 file: save the weights as .safetensors",
}
COUNTER = "num_batches_tracked"  # files older than torch 0.4.1 lack it, and nothing depends on it

State = dict[str, torch.Tensor]


class LoadReport(NamedTuple):
    """What a load took from its file and what it did not."""

    path: Path
    sha256: str
    taken: tuple[str, ...]  # names in the file
    ignored: tuple[str, ...]  # names in the file
    initialised: tuple[str, ...]  # names in the model that keep their fresh values
    numbers: int  # values taken, each of the file's once

    def __str__(self) -> str:
        parts = [f"weights: {self.path.name} (sha256 {self.sha256[:8]}...)"]
        parts.append(f"took {len(self.taken)} tensors, {self.numbers:,} numbers")
        parts.append(f"ignored {', '.join(self.ignored) or 'none'}")
        fresh = sorted({".".join(name.split(".")[:2]) for name in self.initialised})
        parts.append(f"initialised afresh: {', '.join(fresh) or 'none'}")
        return "; ".join(parts)


def load_imagenet_resnet(model: TacafNet, path: Path) -> LoadReport:
    """Put a classification ResNet of the usual parameter names (torchvision, timm) into the backbone.

    `conv1` and `bn1` go into both stems, `layer1` to `layer4` where they are, the classifier nowhere. The images must
    be normalised as the file's were (ImageNet's mean and deviation, as `data.augment` does). Raises InputError.
    """
    if not isinstance(model.backbone, Backbone):
        raise InputError(
            "train.weights: expected the ResNet, got another backbone; give its own model.backbone.weights"
        )
    state = read_state(path)
    ignored = tuple(name for name in state if name.startswith(IMAGENET_HEAD))
    renamed: dict[str, str] = {}  # name in the model -> name in the file
    for name in state:
        stems = ("visible_stem.", "infrared_stem.") if name.startswith(STEM) else ("",)
        renamed |= {f"backbone.{stem}{name}": name for stem in stems if name not in ignored}
    wanted = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("backbone.")}
    return copy_into(
        model,
        path,
        state,
        renamed=renamed,
        wanted=wanted,
        ignored=ignored,
        kind="a ResNet of model.backbone's width, blocks and block",
    )


def load_tacafnet(model: TacafNet, path: Path) -> LoadReport:
    """Start from a trained TACAFNet (model.safetensors): everything but the classifiers, which stay new.

    The two models must agree in everything but their identities. Raises InputError.
    """
    state = read_state(path)
    ignored = tuple(name for name in state if CLASSIFIER in name)
    renamed = {name: name for name in state if name not in ignored}
    wanted = {name: tensor for name, tensor in model.state_dict().items() if CLASSIFIER not in name}
    return copy_into(
        model,
        path,
        state,
        renamed=renamed,
        wanted=wanted,
        ignored=ignored,
        kind="a TACAFNet of the same `model` section",
    )


def inference_model(config: ModelConfig, state: State, where: str = "the model") -> TacafNet:
    """A model for `embed` with these weights, in evaluation mode on the CPU.

    `state` may hold the classifiers or not. Only training needs them, and they can be many times larger than everything
    else, so the model is built with classifiers of one identity. Raises InputError if anything else is missing,
    unknown, of another shape or not finite: a part left at its random values would still give scores.
    """
    kept = {name: tensor for name, tensor in state.items() if CLASSIFIER not in name}
    fits(config, {name: tuple(tensor.shape) for name, tensor in kept.items()})
    if bad := not_finite(kept):
        raise InputError(f"{where}: expected finite weights, got NaN or infinity in {bad}; the training went wrong")
    model = TacafNet(config.unsplit(), 1)
    model.load_state_dict({**model.state_dict(), **kept})
    return model.eval()


def fits(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise InputError unless a model of this configuration has exactly these tensors, its classifiers aside.

    The model is built without memory for its tensors, so no file can make us build a larger model than it holds.
    """
    try:
        with torch.device("meta"):
            own = TacafNet(config.unsplit(), 1).state_dict()
    except (ArithmeticError, MemoryError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"model: such a network cannot be built: {_line(error)}") from None
    wanted = {name: tuple(tensor.shape) for name, tensor in own.items() if CLASSIFIER not in name}
    wrong = sorted(wanted.keys() ^ shapes.keys())
    wrong += [name for name in wanted.keys() & shapes.keys() if wanted[name] != shapes[name]]
    if wrong:
        raise InputError(
            f"expected the weights of the model the file describes, got {len(wrong)} missing, unknown or of another "
            f"shape (first {shown(wrong[0])}); take the file as the training wrote it"
        )


def copy_into(
    model: TacafNet,
    path: Path,
    state: State,
    *,
    renamed: dict[str, str],
    wanted: State,
    ignored: tuple[str, ...],
    kind: str,
) -> LoadReport:
    """Check every name and shape, then copy."""
    missing = [name for name in wanted if name not in renamed and not name.endswith(COUNTER)]
    unknown = [name for name in renamed if name not in wanted]
    other = [name for name in wanted if name in renamed and state[renamed[name]].shape != wanted[name].shape]
    if missing or unknown or other:
        found = [f"{len(missing)} missing (first {missing[0]})"] if missing else []
        found += [f"{len(unknown)} unknown (first {renamed[unknown[0]]})"] if unknown else []
        if other:
            first = other[0]
            shapes = f"{list(state[renamed[first]].shape)}, not {list(wanted[first].shape)}"
            found.append(f"{len(other)} of another shape (first {renamed[first]}: {shapes})")
        raise InputError(
            f"{path}: expected {kind}, got tensors that do not fit: {'; '.join(found)}; take the fitting file"
        )
    with torch.no_grad():
        for name, source in renamed.items():
            wanted[name].copy_(state[source])
    taken = tuple(dict.fromkeys(renamed.values()))
    return LoadReport(
        path=Path(path),
        sha256=sha256_of(Path(path)),
        taken=taken,
        ignored=ignored,
        initialised=tuple(name for name in model.state_dict() if name not in renamed and not name.endswith(COUNTER)),
        numbers=sum(state[name].numel() for name in taken),
    )


def read_state(path: Path) -> State:
    """The tensors of a file by name, without the usual wrappings: a `state_dict` entry, a `module.` prefix.

    Raises InputError for a file that holds anything but finite tensors by name, or that needs code to be unpickled.
    """
    path = Path(path)
    _refuse_unlikely(path)
    if path.suffix == ".safetensors":
        file = TensorFile.open(path)
        if file.sealed:
            file.check_seal("copy it again")
        state = file.read(file.tensors)
    else:
        state = _unwrapped(_unpickled(path), path)
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    odd = [name for name, one in state.items() if one.is_complex() or one.is_quantized or one.layout != torch.strided]
    if odd or (bad := not_finite(state)):
        what = f"{odd[0]}, which is complex, quantized or sparse" if odd else f"NaN or infinity in {bad}"
        raise InputError(f"{shown(path)}: expected plain, finite tensors, got {what}; save the weights again")
    return state


def _refuse_unlikely(path: Path) -> None:
    """Raise InputError if the name, the size or the first bytes show that this is not a file of weights."""
    name, kinds = shown(path), ", ".join(SUFFIXES)
    if not path.is_file():
        raise InputError(f"{name} is not a file" if path.exists() else f"{name} does not exist")
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"{name}: expected a name that ends in one of {kinds}, got {path.suffix or 'none'}; rename the file if it"
            " is one of these, else save the state_dict() of its model"
        )
    try:
        with path.open("rb") as file:
            begin = file.read(512).lstrip()
    except OSError as error:
        raise InputError(f"cannot read {name}: {reason_of(error)}") from None
    found = next((text for start, text in _NOT_WEIGHTS.items() if begin.lower().startswith(start)), None)
    if found or not begin:
        raise InputError(f"{name}: expected a weights file, got {found or 'an empty file'}")


def _unpickled(path: Path) -> Any:
    """What `torch.save` wrote; nothing but tensors and plain values are unpickled."""
    try:
        with path.open("rb") as file:
            if file.read(4)[:1] != b"\x80" and not zipfile.is_zipfile(file):
                raise InputError(f"{shown(path)}: expected a file of torch.save, got something else or a part of one")
        return torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{shown(path)}: expected tensors only, got a file that needs code to be unpickled; save its state_dict()"
            " alone, best as .safetensors"
        ) from None
    except InputError:
        raise
    except Exception as error:  # PyTorch and pickle raise many kinds on damaged files
        raise InputError(
            f"{shown(path)}: expected a readable weights file, got: {_line(error)}; fetch it again"
        ) from None


def _unwrapped(found: Any, path: Path) -> State:
    """The mapping of names to tensors, taken out of the entries in which it is usually saved."""
    for _ in range(3):  # such as {"model": {"state_dict": ...}}
        inner = (
            [found[key] for key in _WRAPPINGS if isinstance(found.get(key), dict)] if isinstance(found, dict) else []
        )
        found = inner[0] if inner else found
    if not isinstance(found, dict):
        raise InputError(
            f"{shown(path)}: expected a state dict (names to tensors), got {type(found).__name__}; save that"
        )
    odd = next(
        (key for key, value in found.items() if not (isinstance(key, str) and isinstance(value, torch.Tensor))), None
    )
    if odd is not None or not found:
        what = f"{shown(odd)[:60]!r}, which is {type(found[odd]).__name__}" if found else "an empty one"
        raise InputError(
            f"{shown(path)}: expected a state dict with nothing but names and tensors, got {what}; save"
            f" model.state_dict() itself, or under one of {', '.join(_WRAPPINGS)}"
        )
    return found


def _line(error: BaseException) -> str:
    return shown(" ".join(str(error).split()) or type(error).__name__)[:200]
