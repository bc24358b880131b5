"""Descriptors of image files, with the hash of each file's content. What cannot be read is left out and named."""

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
    """What became of a list of paths. N of them were embedded."""

    places_N: list[int]  # in the list
    sha256_N: list[str]  # of the files' bytes
    descriptors_ND: np.ndarray  # float32
    unreadable: list[str]  # a sentence for each file that is no image
    known: list[tuple[int, str]]  # place and hash of each file whose content was known before


def embed_files(
    embedder: Embedder,
    paths: Sequence[Path],
    modality: Modality,
    embedding: Embedding | None = None,
    flip: bool = False,
    known: set[str] | None = None,
) -> EmbeddedFiles:
    """Descriptors of image files; each file is read once.

    known: hashes of contents that need not be embedded again. What is embedded here counts as known from then on. With
    None, every file is embedded.
    """
    found = EmbeddedFiles([], [], np.empty((0, 0), np.float32), [], [])
    images_CHW = _readable(embedder, paths, modality, None if known is None else set(known), found)
    return found._replace(descriptors_ND=embedder.embed_each(images_CHW, modality, embedding, flip))


def _readable(
    embedder: Embedder, paths: Sequence[Path], modality: Modality, known: set[str] | None, found: EmbeddedFiles
) -> Iterator[torch.Tensor]:
    """Every image that is to be embedded, prepared. Adds all that is known of the files to the lists in `found`."""
    for place, path in enumerate(paths):
        try:
            data = read_file(path)
            content = hashlib.sha256(data).hexdigest()
            if known is not None and content in known:
                found.known.append((place, content))
                continue
            image_CHW = embedder.read(data, modality, name=str(path))
        except InputError as error:
            found.unreadable.append(str(error))
            continue
        if known is not None:
            known.add(content)
        found.places_N.append(place)
        found.sha256_N.append(content)
        yield image_CHW
