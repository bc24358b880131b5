"""Weights from files: ImageNet ResNets into the backbone, or a trained TACAFNet but for its classifiers.

Strict: a tensor that is missing, of another shape or unknown ends the load before the model has changed; what was
taken is reported. Nothing but tensors is unpickled.
"""

import pickle
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tacaf.files import sha256_of
from tacaf.model.backbone import Backbone
from tacaf.model.tacafnet import ModelConfig, TacafNet
from tacaf.vocabulary import InputError

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
STEM = ("conv1.", "bn1.")
IMAGENET_HEAD = ("fc.", "classifier.")
CLASSIFIER = "classifier"  # in the name of every tensor whose shape depends on the training identities
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
    state = _read(path)
    ignored = tuple(name for name in state if name.startswith(IMAGENET_HEAD))
    renamed: dict[str, str] = {}  # name in the model -> name in the file
    for name in state:
        stems = ("visible_stem.", "infrared_stem.") if name.startswith(STEM) else ("",)
        renamed |= {f"backbone.{stem}{name}": name for stem in stems if name not in ignored}
    wanted = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("backbone.")}
    return _copy(model, path, state, renamed, wanted, ignored, "a ResNet of model.backbone's width, blocks and block")


def load_tacafnet(model: TacafNet, path: Path) -> LoadReport:
    """Start from a trained TACAFNet (model.safetensors): everything but the classifiers, which stay new.

    The two models must agree in everything but their identities. Raises InputError.
    """
    state = _read(path)
    ignored = tuple(name for name in state if CLASSIFIER in name)
    renamed = {name: name for name in state if name not in ignored}
    wanted = {name: tensor for name, tensor in model.state_dict().items() if CLASSIFIER not in name}
    return _copy(model, path, state, renamed, wanted, ignored, "a TACAFNet of the same `model` section")


def embedder(config: ModelConfig, state: State) -> TacafNet:
    """A model for `embed` with these weights, in evaluation mode on CPU. `state` may come with its classifiers or not:
    they serve training alone and may be many times the rest, so the model has them for one identity. InputError if
    anything else is missing, unknown or of another shape: a part left at random would score without a word.
    """
    model = TacafNet(config, 1)
    kept = {name: tensor for name, tensor in state.items() if CLASSIFIER not in name}
    own = model.state_dict()
    wrong = sorted({name for name in own if CLASSIFIER not in name} ^ kept.keys())
    wrong += [name for name in own.keys() & kept.keys() if own[name].shape != kept[name].shape]
    if wrong:
        raise InputError(
            f"expected the weights of the model the file describes, got {len(wrong)} missing, unknown or of another "
            f"shape (first {wrong[0]}); take the file as the training wrote it"
        )
    model.load_state_dict({**own, **kept})
    return model.eval()


def _copy(
    model: TacafNet,
    path: Path,
    state: State,
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
        sha256=sha256_of(path),
        taken=taken,
        ignored=ignored,
        initialised=tuple(name for name in model.state_dict() if name not in renamed and not name.endswith(COUNTER)),
        numbers=sum(state[name].numel() for name in taken),
    )


def _read(path: Path) -> State:
    """The tensors of a file by name, without the wrappings people save: a `state_dict` entry, a `module.` prefix."""
    path = Path(path)
    if path.suffix not in SUFFIXES or not path.is_file():
        got = f"a {path.suffix or 'nameless'} file" if path.is_file() else "no file"
        raise InputError(f"expected a weights file ({', '.join(SUFFIXES)}) at {path}, got {got}; check the path")
    try:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path}: expected tensors only, got a file that needs unpickling code; "
            "save its state_dict() alone, best as .safetensors"
        ) from None
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: expected a readable weights file, got: {reason}; fetch it again") from None
    if isinstance(found, dict):
        found = next((found[key] for key in ("state_dict", "model") if isinstance(found.get(key), dict)), found)
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()) or not found:
        raise InputError(f"{path}: expected a state dict (names to tensors), got {type(found).__name__}; save that")
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}
