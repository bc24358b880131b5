"""Embedding image files and hashing their content. Unreadable files are left out and reported."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from tacaf.data.photo import read_file
from tacaf.search.embedder import Embedder
from tacaf.vocabulary import Embedding, InputError, Modality


class EmbeddedFiles(NamedTuple):
    """The result of embedding a list of paths, of which N were embedded."""

    places_N: list[int]  # positions in the list
    sha256_N: list[str]  # of the files' bytes
    descriptors_ND: np.ndarray  # float32
    unreadable: list[str]  # a sentence for each file that is not an image
    known: list[tuple[int, str]]  # position and hash of each file whose content was known before


def embed_files(
    embedder: Embedder,
    paths: Sequence[Path],
    modality: Modality,
    embedding: Embedding | None = None,
    flip: bool = False,
    known: set[str] | None = None,
) -> EmbeddedFiles:
    """Descriptors of image files; each file is read once.

    known: hashes of contents that need not be embedded again; every content that is embedded here is added to them.
    With None, every file is embedded.
    """
    files = EmbeddedFiles([], [], np.empty((0, 0), np.float32), [], [])
    images_CHW = _readable(embedder, paths, modality, None if known is None else set(known), files)
    return files._replace(descriptors_ND=embedder.embed_each(images_CHW, modality, embedding, flip))


def _readable(
    embedder: Embedder, paths: Sequence[Path], modality: Modality, known: set[str] | None, files: EmbeddedFiles
) -> Iterator[torch.Tensor]:
    """Every image that must be embedded, prepared. Adds each file to one of the lists in `files`."""
    for place, path in enumerate(paths):
        try:
            data = read_file(path)
            content = hashlib.sha256(data).hexdigest()
            if known is not None and content in known:
                files.known.append((place, content))
                continue
            image_CHW = embedder.read(data, modality, name=str(path))
        except InputError as error:
            files.unreadable.append(str(error))
            continue
        if known is not None:
            known.add(content)
        files.places_N.append(place)
        files.sha256_N.append(content)
        yield image_CHW
