"""`Embedder`: a trained model that turns images of one modality into descriptors of length 1.

    embedder = Embedder.load("runs/sysu")
    features = embedder.embed(["a.jpg", "b.jpg"], "infrared")    # float32 [2, 7168], compare by dot product

It loads a run, a model.safetensors, or an exported folder (safetensors or ONNX).
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
    """A trained model for embedding images. Create it with `load`."""

    def __init__(self, loaded: LoadedModel, thermal_range: ThermalRange = None) -> None:
        given = given_scale(thermal_range)
        self._run = loaded.run
        self.height, self.width = loaded.height, loaded.width  # of the model's input, pixels
        self.card = loaded.card  # training set, seed, embedding; for an ONNX export also preprocessing and results
        # The embedding that the model was scored with.
        self.usual_embedding: Embedding = loaded.card.usual_embedding
        # How grey of more than 8 bits becomes 8.
        self.scales = loaded.scales if given is None else {**loaded.scales, Modality.INFRARED: given}
        self.model_sha256 = loaded.sha256  # of the weights, because descriptors of two models cannot be compared
        self.model = loaded.network  # None for ONNX
        self.device = loaded.device

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu", thermal_range: ThermalRange = None) -> "Embedder":
        """Load a run folder, an exported folder, a model.safetensors or one of an export's .onnx files.

        thermal_range: the grey values that become black and white in infrared images of more than 8 bits, (low, high)
        or "per-image"; None for the range of the model's training set. ONNX needs the package onnxruntime and runs on
        the CPU. Raises InputError if there is no such model.
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

        images: a list of paths, files' bytes, PIL images or arrays: uint8 [H, W, 3], or grey [H, W] of numbers; not a
        single image. embedding: None for `usual_embedding`, with which the model was scored. flip: average with the
        descriptor of the mirror image, and normalise. thermal_range: as for `load`, for these images.
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
        """`embed` for results of `read`, taken one at a time, so that only one batch is in memory."""
        parts = [np.empty((0, self.embedding_width(embedding)), np.float32)]
        remaining = iter(images_CHW)
        while batch := list(itertools.islice(remaining, batch_size)):
            parts.append(self.embed_prepared(torch.stack(batch), modality, embedding, flip))
        return np.concatenate(parts)

    def embed_prepared(
        self, images_BCHW: torch.Tensor, modality: Modality, embedding: Embedding | None = None, flip: bool = False
    ) -> np.ndarray:
        """`embed` for a batch of results of `read`, float32 [b, 3, H, W]."""
        embedding = self._kind(embedding)
        descriptors_BD = self._run(images_BCHW, modality, embedding)
        if flip:
            descriptors_BD = descriptors_BD + self._run(images_BCHW.flip(3), modality, embedding)
            descriptors_BD /= np.maximum(np.linalg.norm(descriptors_BD, axis=1, keepdims=True), 1e-12)
        return descriptors_BD.astype(np.float32, copy=False)

    def read(
        self,
        image: Source,
        modality: Modality | str,
        limits: Limits = USUAL,
        thermal_range: ThermalRange = None,
        name: str = "the image",
    ) -> torch.Tensor:
        """An image as the model's input, float32 [3, H, W] on the CPU. Raises InputError like `pixels`."""
        return prepare(self.pixels(image, modality, limits, thermal_range, name), self.height, self.width)

    def pixels(
        self,
        image: Source,
        modality: Modality | str,
        limits: Limits = USUAL,
        thermal_range: ThermalRange = None,
        name: str = "the image",
    ) -> np.ndarray:
        """An image as the model sees it before resizing, RGB uint8 [H, W, 3].

        Grey of more than 8 bits is mapped by `thermal_range`, by default that of the training set. Without a range,
        whole numbers are taken to fill 16 bits, and other images, and those that would look flat, are refused. Raises
        InputError if the source is not an image or is too large.
        """
        scale = given_scale(thermal_range) or self.scales.get(modality_of(modality))
        return decode(image, limits, name, scale)

    def embedding_width(self, embedding: Embedding | None = None) -> int:
        """The number of values in a descriptor."""
        return sum(stop - start for start, stop in slices_of(self.card.embedding, self._kind(embedding)))

    def _kind(self, embedding: Embedding | None) -> Embedding:
        """The embedding, by default the usual one. Raises InputError if it is unknown."""
        if embedding not in (None, *get_args(Embedding)):
            kinds = " or ".join(get_args(Embedding))
            raise InputError(f"expected the embedding {kinds}, got {embedding!r}; choose one of them")
        return embedding or self.usual_embedding


def list_of(images: Iterable[Source]) -> list[Source]:
    """The images as a list. Raises InputError for a single image, which would be iterated by rows, letters or bytes."""
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
    """The modality of this name. Raises InputError if there is none."""
    try:
        return Modality(word)
    except ValueError:
        names = " or ".join(Modality)
        raise InputError(f"expected the modality {names}, got {word!r}; name the kind of camera") from None
