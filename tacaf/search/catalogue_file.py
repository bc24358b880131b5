"""The file of a catalogue: written atomically with a seal, checked completely when read, and locked while it changes.

It is a safetensors file: `descriptors` float32 [n, d], `sha256` uint8 [n, 32] of the images' files, `names` uint8
(JSON), and as metadata the hashes of the model and of the file itself. Nothing is pickled. Source: ours.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tacaf import files
from tacaf.documents import Document, Sha256, load_json
from tacaf.files import shown
from tacaf.images import GreyScale
from tacaf.search.catalogue import CURE, Catalogue, check_lengths
from tacaf.tensors import TensorFile, save_sealed
from tacaf.vocabulary import Embedding, InputError, Modality

FORMAT, VERSION = "tacaf-catalogue", 2
MOST_NAME = 2**14  # characters, more than any file system allows in a path
MOST_NAMES_BYTES = 2**32


class CatalogueFacts(Document):
    """The metadata of the file."""

    format: Literal["tacaf-catalogue"]
    version: Literal[2]
    model_sha256: Sha256
    modality: Modality
    embedding: Embedding
    flip: bool
    scale: GreyScale | None  # how grey of more than 8 bits became 8
    seal: Sha256  # sha256 of the file with 64 zeros in place of the seal


def open_catalogue(path: Path) -> Catalogue:
    """Read and check a file that `save_catalogue` wrote. Raises InputError for any other file."""
    try:
        return _read(path)
    except InputError as error:
        raise InputError(f"cannot read the gallery index {shown(path)}: {error}; {CURE}") from None


def save_catalogue(path: Path, catalogue: Catalogue) -> None:
    """Write the file atomically. Raises InputError if it cannot be written."""
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "model_sha256": catalogue.model_sha256,
        "modality": str(catalogue.modality),
        "embedding": catalogue.embedding,
        "flip": catalogue.flip,
        "scale": catalogue.scale and catalogue.scale.model_dump(mode="json"),
    }
    hashes = np.frombuffer(bytearray.fromhex("".join(catalogue.sha256)), np.uint8).reshape(-1, 32)
    names = np.frombuffer(bytearray(json.dumps(catalogue.names), "ascii"), np.uint8)
    tensors = {"descriptors": catalogue.descriptors_GD, "sha256": hashes, "names": names}
    save_sealed(path, {name: torch.from_numpy(array) for name, array in tensors.items()}, facts)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock the file for this process. Raises InputError if another process writes it or the lock cannot be created."""
    busy = f"{shown(path)} is being written by another process; wait for it"
    with files.locked(path.with_name(f".{path.name}.lock"), wait=False, busy=busy):
        yield


def _read(path: Path) -> Catalogue:
    file = TensorFile.open(path)
    facts = file.document(CatalogueFacts, CURE)
    file.check_seal(CURE)
    _check_form(file)
    parts = file.read(file.tensors)
    names = load_json(parts["names"].numpy().tobytes(), "names", MOST_NAMES_BYTES)
    descriptors_GD = parts["descriptors"].numpy()
    _check_names(names, len(descriptors_GD))
    check_lengths(descriptors_GD)
    return Catalogue(
        model_sha256=facts.model_sha256,
        modality=facts.modality,
        embedding=facts.embedding,
        flip=facts.flip,
        scale=facts.scale,
        descriptors_GD=descriptors_GD,
        names=names,
        sha256=[row.tobytes().hex() for row in parts["sha256"].numpy()],
    )


def _check_form(file: TensorFile) -> None:
    """Raise InputError unless the three tensors exist, have the right types, and agree in the number of images."""
    dtypes = {"descriptors": "F32", "sha256": "U8", "names": "U8"}
    stored = {name: facts.dtype for name, facts in file.tensors.items()}
    if stored != dtypes:
        raise InputError(f"expected the tensors {dtypes}, got {shown(stored)[:200]}")
    descriptors, hashes, names = (file.tensors[name].shape for name in dtypes)
    if len(descriptors) != 2 or descriptors[1] == 0 or hashes != (descriptors[0], 32) or len(names) != 1:
        raise InputError(
            f"parts that do not fit: descriptors {list(descriptors)}, sha256 {list(hashes)}, names {list(names)}"
        )


def _check_names(names: Any, count: int) -> None:
    """Raise InputError unless these are `count` different relative paths that stay below their folder."""
    if not isinstance(names, list) or len(names) != count:
        got = f"{len(names)} of them" if isinstance(names, list) else type(names).__name__
        raise InputError(f"names: expected a list of {count} names, got {got}")
    for name in names:
        if not isinstance(name, str) or not 0 < len(name) <= MOST_NAME:
            raise InputError(f"names: expected text of 1 to {MOST_NAME} characters, got {shown(name)[:60]!r}")
        if name.startswith("/") or "\0" in name or ".." in name.split("/"):
            raise InputError(f"names: expected paths below a folder, got {shown(name)[:60]!r}")
    if len(set(names)) != count:
        raise InputError("names: expected every name once, got one twice")
