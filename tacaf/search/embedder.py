"""A trained model as one object: images of one modality in, unit descriptors out.

    embedder = Embedder.load("runs/sysu")
    features = embedder.embed(["a.jpg", "b.jpg"], "infrared")    # float32 [2, 7168], compare by dot product

Loads a run, a model.safetensors, or an exported folder (safetensors or ONNX).
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image

from tacaf.data.photo import USUAL, Limits, Source, decode, prepare
from tacaf.files import shown
from tacaf.images import GreyScale, ThermalRange, given_scale
from tacaf.model.card import CARD, ExportCard, checked_file, read_card
from tacaf.model.file import MODEL, ModelFacts, load_model
from tacaf.model.tacafnet import TacafNet
from tacaf.model.weights import CLASSIFIER
from tacaf.vocabulary import Embedding, InputError, Modality

ONNX_FILES = {modality: f"{modality}.onnx" for modality in Modality}

# images float32 [b, 3, H, W], modality, embedding -> descriptors [b, d]
Run = Callable[[torch.Tensor, Modality, Embedding], np.ndarray]


class Embedder:
    """What every user of a trained model needs; made by `load`."""

    def __init__(
        self,
        run: Run,
        height: int,
        width: int,
        card: dict[str, Any],
        sha256: str,
        scales: dict[Modality, GreyScale],
    ) -> None:
        self._run = run
        self.height, self.width = height, width  # of the model's input, pixels
        self.card = card  # what is known of the model: training set, seed, preprocessing, results
        self.usual_embedding: Embedding = card["usual_embedding"]  # what the model was scored with
        self.scales = scales  # how grey of more than 8 bits becomes 8
        self.model_sha256 = sha256  # of the weights: descriptors of two models never compare
        self.model: TacafNet | None = None  # None for ONNX
        self.device = torch.device("cpu")

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu", thermal_range: ThermalRange = None) -> "Embedder":
        """From a run folder, an exported folder, a model.safetensors or one of an export's .onnx files.

        thermal_range: which grey values become black and white in infrared images of more than 8 bits, (low, high) or
        "per-image"; None for the range of the set that the model was trained on. ONNX needs the package onnxruntime and
        runs on the CPU. InputError for anything else.
        """
        path = Path(path)
        folder = path if path.is_dir() else path.parent
        if path.suffix == ".onnx" or (path.is_dir() and not (path / MODEL).exists() and (path / CARD).exists()):
            return _load_onnx(cls, folder, thermal_range)
        return _load_torch(cls, path / MODEL if path.is_dir() else path, device, thermal_range)

    def embed(
        self,
        images: Iterable[Source],
        modality: Modality | str,
        embedding: Embedding | None = None,
        flip: bool = False,
        batch_size: int = 32,
        thermal_range: ThermalRange = None,
    ) -> np.ndarray:
        """Descriptors of images of one modality, float32 [n, d], each of length 1: compare them by dot product.

        images: a list of paths, files' bytes, PIL images or arrays: uint8 [H, W, 3], or grey [H, W] of numbers; never
        one image alone. embedding: None for `usual_embedding`, the one that the model's own scores are of. flip: the
        normalised mean with the mirror image's. thermal_range: as for `load`, for these images.
        InputError for an image that is none, naming it, and for a modality that is none.
        """
        modality, several = modality_of(modality), list_of(images)
        found = []
        for start in range(0, len(several), batch_size):
            batch = [
                self.read(image, modality, thermal_range=thermal_range, name=f"images[{place}]")
                for place, image in enumerate(several[start : start + batch_size], start)
            ]
            found.append(self.embed_prepared(torch.stack(batch), modality, embedding, flip))
        return np.concatenate(found) if found else np.empty((0, self.embedding_width(embedding)), np.float32)

    def embed_prepared(
        self, images_BCHW: torch.Tensor, modality: Modality, embedding: Embedding | None = None, flip: bool = False
    ) -> np.ndarray:
        """`embed` of what `read` gave, float32 [b, 3, H, W]."""
        embedding = self._kind(embedding)
        found_BD = self._run(images_BCHW, modality, embedding)
        if flip:
            found_BD = found_BD + self._run(images_BCHW.flip(3), modality, embedding)
            found_BD /= np.maximum(np.linalg.norm(found_BD, axis=1, keepdims=True), 1e-12)
        return found_BD.astype(np.float32, copy=False)

    def read(
        self,
        image: Source,
        modality: Modality | str,
        limits: Limits = USUAL,
        thermal_range: ThermalRange = None,
        name: str = "the image",
    ) -> torch.Tensor:
        """An image as the model's input, float32 [3, H, W] on the CPU; InputError as `pixels`."""
        return prepare(self.pixels(image, modality, limits, thermal_range, name), self.height, self.width)

    def pixels(
        self,
        image: Source,
        modality: Modality | str,
        limits: Limits = USUAL,
        thermal_range: ThermalRange = None,
        name: str = "the image",
    ) -> np.ndarray:
        """An image as the model sees it before resizing, RGB uint8 [H, W, 3]. InputError for what is none or too large.

        Grey of more than 8 bits goes through `thermal_range`, by default that of the training set. A model without one
        takes whole numbers to fill 16 bits, and refuses what would be flat or has no such range.
        """
        scale = given_scale(thermal_range) or self.scales.get(modality_of(modality))
        return decode(image, limits, name, scale)

    def embedding_width(self, embedding: Embedding | None = None) -> int:
        """Numbers per descriptor."""
        return sum(stop - start for start, stop in slices_of(self.card, self._kind(embedding)))

    def _kind(self, embedding: Embedding | None) -> Embedding:
        """InputError for a word that is none."""
        if embedding not in (None, *get_args(Embedding)):
            kinds = " or ".join(get_args(Embedding))
            raise InputError(f"expected the embedding {kinds}, got {embedding!r}; take one of them")
        return embedding or self.usual_embedding


def list_of(images: Iterable[Source]) -> list[Source]:
    """The images as a list. InputError for one image alone, which would be taken apart into rows, letters or bytes."""
    one = isinstance(images, str | bytes | os.PathLike | Image.Image)
    if isinstance(images, np.ndarray):
        one = images.ndim < 3 or (images.ndim == 3 and images.shape[2] in (1, 3, 4))
    try:
        if not one:
            return list(images)
    except TypeError:
        pass
    raise InputError(f"images: expected a list of images, got {type(images).__name__}; write [image] for a single one")


def modality_of(word: Modality | str) -> Modality:
    """The modality of this name."""
    try:
        return Modality(word)
    except ValueError:
        names = " or ".join(Modality)
        raise InputError(f"expected the modality {names}, got {word!r}; say what the camera saw") from None


def slices_of(card: dict[str, Any], embedding: Embedding) -> list[tuple[int, int]]:
    """Where a kind of descriptor lies in the full one; its parts are normalised again together."""
    found = {
        name: (start, stop)
        for name, (start, stop) in card["embedding"]["slices"].items()
        if embedding == "full" or name == "global feature" or (embedding, name[:4]) == ("global_and_parts", "part")
    }
    return list(found.values())


def describe_embedding(model: TacafNet) -> dict[str, Any]:
    """Which numbers of the full descriptor are what (method §5.6)."""
    whole, head = model.embedding_width(), model.embedding_width("global_only")
    slices = {"global feature": [0, head]}
    if model.ipcam is not None:
        node = model.config.ipcam.node_width
        slices |= {"global node": [head, head + node], "part nodes, coarse to fine": [head + node, whole]}
    return {"width": whole, "global_width": head, "slices": slices, "length": 1, "compare_by": "cosine"}


def weights_sha256(model: TacafNet) -> str:
    """Of everything that decides a descriptor: the same for a run and its exports, whatever the file."""
    # neither CMAAM's mask in training nor the choice of kernels is part of a descriptor
    config = model.config.portable().model_dump(mode="json", exclude={"cmaam": {"mask"}, "kernels": True})
    found = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if CLASSIFIER not in name:
            found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _load_torch(cls: type[Embedder], path: Path, device: str, thermal_range: ThermalRange) -> Embedder:
    if (path.parent / CARD).exists():
        checked_file(path.parent, path.name, read_card(path.parent))
    model, facts = load_model(path)
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"expected a device that is here, got {device!r}: {reason}; take cpu") from None

    @torch.no_grad()
    def run(images_BCHW: torch.Tensor, modality: Modality, embedding: Embedding) -> np.ndarray:
        return model.embed(images_BCHW.to(device), modality, embedding).cpu().numpy()

    card = {
        **facts.model_dump(mode="json", include=set(ModelFacts.model_fields)),
        "embedding": describe_embedding(model),
    }
    made = cls(run, facts.height, facts.width, card, weights_sha256(model), _scales(facts, thermal_range))
    made.model, made.device = model, torch.device(device)
    return made


def _load_onnx(cls: type[Embedder], folder: Path, thermal_range: ThermalRange) -> Embedder:
    try:
        import onnxruntime
    except ImportError:
        raise InputError(
            "expected the package onnxruntime for an ONNX model, found none; pip install 'tacaf[onnx]'"
        ) from None
    facts = read_card(folder)
    sessions = {}
    for modality, name in ONNX_FILES.items():
        path = checked_file(folder, name, facts)
        try:
            sessions[modality] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises kinds of its own, all of them bare Exceptions
            raise InputError(
                f"{shown(path)}: expected an ONNX graph, got: {_line(error)}; export the run again"
            ) from None
        _check_graph(sessions[modality], path, facts)
    card = facts.model_dump(mode="json", exclude={"seal"})

    def run(images_BCHW: torch.Tensor, modality: Modality, embedding: Embedding) -> np.ndarray:
        (found_BD,) = sessions[modality].run(["embedding"], {"images": images_BCHW.numpy()})
        if embedding == "full":
            return found_BD
        kept_BD = np.concatenate([found_BD[:, start:stop] for start, stop in slices_of(card, embedding)], axis=1)
        return kept_BD / np.linalg.norm(kept_BD, axis=1, keepdims=True)

    return cls(run, facts.height, facts.width, card, facts.model_sha256, _scales(facts, thermal_range))


def _scales(facts: ModelFacts, thermal_range: ThermalRange) -> dict[Modality, GreyScale]:
    """Those of the training set, or for infrared what the user says."""
    given = given_scale(thermal_range)
    return facts.scales if given is None else {**facts.scales, Modality.INFRARED: given}


def _check_graph(session: Any, path: Path, card: ExportCard) -> None:
    """InputError unless the graph takes and gives what the card says."""
    given, found = (
        [(one.name, one.shape[1:]) for one in some] for some in (session.get_inputs(), session.get_outputs())
    )
    wanted = [("images", [3, card.height, card.width])], [("embedding", [card.embedding.width])]
    if (given, found) != wanted:
        raise InputError(
            f"{shown(path)}: expected {wanted[0]} to {wanted[1]}, got {given} to {found}; export the run again"
        )


def _line(error: Exception) -> str:
    return shown(" ".join(str(error).split()))[:200]
