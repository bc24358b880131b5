"""A trained model as one object: images of one modality in, unit descriptors out.

    embedder = Embedder.load("runs/sysu")
    features = embedder.embed(["a.jpg", "b.jpg"], "infrared")    # float32 [2, 7168], compare by dot product

Loads a run, a model.safetensors, or an exported folder (safetensors or ONNX).
"""

import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from PIL import Image

from tacaf.data.photo import USUAL, Limits, Source, decode, prepare
from tacaf.images import ThermalRange, given_scale
from tacaf.model.file import MODEL
from tacaf.search.card import CARD
from tacaf.search.loaded_model import LoadedModel, load_safetensors, slices_of
from tacaf.search.onnx_model import load_onnx
from tacaf.vocabulary import Embedding, InputError, Modality

BATCH = 32  # images at a time


class Embedder:
    """What every user of a trained model needs; made by `load`."""

    def __init__(self, loaded: LoadedModel, thermal_range: ThermalRange = None) -> None:
        given = given_scale(thermal_range)
        self._run = loaded.run
        self.height, self.width = loaded.height, loaded.width  # of the model's input, pixels
        self.card = loaded.card  # training set, seed, embedding; of an ONNX export also preprocessing and results
        # the kind of descriptor that the model was scored with
        self.usual_embedding: Embedding = loaded.card.usual_embedding
        # how grey of more than 8 bits becomes 8
        self.scales = loaded.scales if given is None else {**loaded.scales, Modality.INFRARED: given}
        self.model_sha256 = loaded.sha256  # of the weights: descriptors of two models never compare
        self.model = loaded.network  # None for ONNX
        self.device = loaded.device

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
            return cls(load_onnx(folder), thermal_range)
        return cls(load_safetensors(path / MODEL if path.is_dir() else path, device), thermal_range)

    def embed(
        self,
        images: Iterable[Source],
        modality: Modality | str,
        embedding: Embedding | None = None,
        flip: bool = False,
        batch_size: int = BATCH,
        thermal_range: ThermalRange = None,
    ) -> np.ndarray:
        """Descriptors of images of one modality, float32 [n, d], each of length 1: compare them by dot product.

        images: a list of paths, files' bytes, PIL images or arrays: uint8 [H, W, 3], or grey [H, W] of numbers; never
        one image alone. embedding: None for `usual_embedding`, the one that the model's own scores are of. flip: the
        normalised mean with the mirror image's. thermal_range: as for `load`, for these images.
        Raises InputError for an unreadable image (naming it) or an unknown modality.
        """
        modality = modality_of(modality)
        prepared = (
            self.read(image, modality, thermal_range=thermal_range, name=f"images[{place}]")
            for place, image in enumerate(list_of(images))
        )
        return self.embed_each(prepared, modality, embedding, flip, batch_size)

    def embed_each(
        self,
        images_CHW: Iterable[torch.Tensor],
        modality: Modality,
        embedding: Embedding | None = None,
        flip: bool = False,
        batch_size: int = BATCH,
    ) -> np.ndarray:
        """`embed` of what `read` gave, one image after another, so that no more than a batch is in memory."""
        parts = [np.empty((0, self.embedding_width(embedding)), np.float32)]
        remaining = iter(images_CHW)
        while batch := list(itertools.islice(remaining, batch_size)):
            parts.append(self.embed_prepared(torch.stack(batch), modality, embedding, flip))
        return np.concatenate(parts)

    def embed_prepared(
        self, images_BCHW: torch.Tensor, modality: Modality, embedding: Embedding | None = None, flip: bool = False
    ) -> np.ndarray:
        """`embed` of one batch of what `read` gave, float32 [b, 3, H, W]."""
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
        return sum(stop - start for start, stop in slices_of(self.card.embedding, self._kind(embedding)))

    def _kind(self, embedding: Embedding | None) -> Embedding:
        """Raises InputError for an unknown embedding."""
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
