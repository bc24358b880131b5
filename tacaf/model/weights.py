"""Loading weights from files: an ImageNet ResNet into the backbone, or a trained TACAFNet without its classifiers.

Loading is strict: a missing or unknown tensor or another shape raises an error before the model has changed, and a
report lists what was loaded. Only tensors and plain values are unpickled.
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
    b"<": "a web page (HTML or XML): open its address in a browser and download the file itself",
    b"{": "JSON: the weights are in another file",
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself with `git lfs pull`",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"\x93numpy": "a NumPy array: save the weights as .safetensors",
    b"\x89hdf": "an HDF5 file: save the weights as .safetensors",
}
NOT_A_RESNET = "train.weights: expected a ResNet, got another backbone; use model.backbone.weights instead"
COUNTER = "num_batches_tracked"  # missing in files older than torch 0.4.1; nothing depends on it

State = dict[str, torch.Tensor]


class LoadReport(NamedTuple):
    """What was loaded from a file and what was not."""

    path: Path
    sha256: str
    taken: tuple[str, ...]  # names in the file
    ignored: tuple[str, ...]  # names in the file
    initialised: tuple[str, ...]  # names in the model that keep their initial values
    numbers: int  # values loaded, each counted once even if it is used twice

    def __str__(self) -> str:
        parts = [f"weights: {self.path.name} (sha256 {self.sha256[:8]}...)"]
        parts.append(f"loaded {len(self.taken)} tensors, {self.numbers:,} numbers")
        parts.append(f"ignored: {', '.join(self.ignored) or 'none'}")
        fresh = sorted({".".join(name.split(".")[:2]) for name in self.initialised})
        parts.append(f"newly initialised: {', '.join(fresh) or 'none'}")
        return "; ".join(parts)


def load_imagenet_resnet(model: TacafNet, path: Path) -> LoadReport:
    """Load a classification ResNet with the usual parameter names (torchvision, timm) into the backbone.

    `conv1` and `bn1` go into both stems, `layer1` to `layer4` keep their names, and the classifier is ignored. Images
    must be normalised as for the file (with ImageNet's mean and deviation, as `data.augment` does). Raises InputError
    if the file does not fit.
    """
    if not isinstance(model.backbone, Backbone):
        raise InputError(NOT_A_RESNET)
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
    """Load everything except the classifiers from a trained TACAFNet (model.safetensors).

    Raises InputError unless the two models agree in everything except their identities.
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

    `state` may contain the classifiers or not. Only training needs them, and they can be many times larger than
    everything else, so the model is built with classifiers of one identity. Raises InputError if anything else is
    missing, unknown, of another shape or not finite, because a part with random values would still give scores.
    """
    kept = {name: tensor for name, tensor in state.items() if CLASSIFIER not in name}
    fits(config, {name: tuple(tensor.shape) for name, tensor in kept.items()})
    if bad := not_finite(kept):
        raise InputError(f"{where}: expected finite weights, got NaN or infinity in {bad}; the training has failed")
    model = TacafNet(config.unsplit(), 1)
    model.load_state_dict({**model.state_dict(), **kept})
    return model.eval()


def fits(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise InputError unless a model of this configuration has exactly these tensors, except its classifiers.

    The model is built without memory for its tensors, so a file cannot make us allocate more than it contains.
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
            f"expected the weights of the model that the file describes, got {len(wrong)} that are missing, unknown or"
            f" of another shape (first {shown(wrong[0])}); use the file as the training wrote it"
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
    """Check every name and shape, then copy. Raises InputError, with the model unchanged, if something does not fit.

    renamed: name in the model -> name in the file. wanted: the model's tensors that must be loaded.
    """
    missing = [name for name in wanted if name not in renamed and not name.endswith(COUNTER)]
    unknown = [name for name in renamed if name not in wanted]
    other = [name for name in wanted if name in renamed and state[renamed[name]].shape != wanted[name].shape]
    if missing or unknown or other:
        problems = [f"{len(missing)} missing (first {missing[0]})"] if missing else []
        problems += [f"{len(unknown)} unknown (first {renamed[unknown[0]]})"] if unknown else []
        if other:
            first = other[0]
            shapes = f"{list(state[renamed[first]].shape)}, not {list(wanted[first].shape)}"
            problems.append(f"{len(other)} of another shape (first {renamed[first]}: {shapes})")
        raise InputError(
            f"{path}: expected {kind}, got tensors that do not fit: {'; '.join(problems)}; use a matching file"
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

    Raises InputError if the file contains anything but named, finite tensors, or needs code to be unpickled.
    """
    path = Path(path)
    refuse_unlikely(path)
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


def refuse_unlikely(path: Path) -> None:
    """Raise InputError if the name, the size or the first bytes show that this is not a file of weights."""
    name, kinds = shown(path), ", ".join(SUFFIXES)
    if not path.is_file():
        found = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"weights: {name} {found}; correct the path, or leave the setting out to train from scratch")
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"{name}: expected a name that ends in one of {kinds}, got {path.suffix or 'none'}; rename the file if it"
            " is one of these, otherwise save the state_dict() of its model"
        )
    try:
        with path.open("rb") as file:
            begin = file.read(512).lstrip()
    except OSError as error:
        raise InputError(f"cannot read {name}: {reason_of(error)}") from None
    what = next((text for start, text in _NOT_WEIGHTS.items() if begin.lower().startswith(start)), None)
    if what or not begin:
        raise InputError(f"{name}: expected a weights file, got {what or 'an empty file'}")


def _unpickled(path: Path) -> Any:
    """The content of a file of `torch.save`; only tensors and plain values are unpickled."""
    try:
        with path.open("rb") as file:
            if file.read(4)[:1] != b"\x80" and not zipfile.is_zipfile(file):
                raise InputError(f"{shown(path)}: this is not a file of torch.save, or only a part of one")
        return torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{shown(path)}: expected only tensors, got a file that needs code to be unpickled; save only its"
            " state_dict(), preferably as .safetensors"
        ) from None
    except InputError:
        raise
    except Exception as error:  # PyTorch and pickle raise many kinds on damaged files
        raise InputError(
            f"{shown(path)}: expected a readable weights file, got: {_line(error)}; download it again"
        ) from None


def _unwrapped(saved: Any, path: Path) -> State:
    """The mapping of names to tensors, extracted from the entries in which it is usually saved."""
    for _ in range(3):  # such as {"model": {"state_dict": ...}}
        inner = (
            [saved[key] for key in _WRAPPINGS if isinstance(saved.get(key), dict)] if isinstance(saved, dict) else []
        )
        saved = inner[0] if inner else saved
    if not isinstance(saved, dict):
        raise InputError(
            f"{shown(path)}: expected a state dict (names to tensors), got {type(saved).__name__}; save"
            " model.state_dict()"
        )
    odd = next(
        (key for key, value in saved.items() if not (isinstance(key, str) and isinstance(value, torch.Tensor))), None
    )
    if odd is not None or not saved:
        what = f"{shown(odd)[:60]!r}, which is {type(saved[odd]).__name__}" if saved else "an empty one"
        raise InputError(
            f"{shown(path)}: expected a state dict with only names and tensors, got {what}; save"
            f" model.state_dict() itself, or under one of {', '.join(_WRAPPINGS)}"
        )
    return saved


def _line(error: BaseException) -> str:
    return shown(" ".join(str(error).split()) or type(error).__name__)[:200]
