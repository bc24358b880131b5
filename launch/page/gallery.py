"""The images a page searches among: of a shard set or of a folder, embedded once, one matrix a modality."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from tacaf.data.index import ShardIndex
from tacaf.data.photo import images_below, left_out_below
from tacaf.data.reader import ShardReader
from tacaf.draws import Stream, permutation
from tacaf.files import shown
from tacaf.search.embedder import Embedder
from tacaf.vocabulary import INDEX_FILE, InputError, Modality

_BATCH = 32


class Held(NamedTuple):
    """An image of a gallery. `read` gives its pixels, uint8 [H, W, 3]; so no image stays in memory."""

    name: str
    pid: int | None  # None where nobody said
    read: Callable[[], np.ndarray]


class Found(NamedTuple):
    """A match: the image's place in its modality's list, and its cosine distance."""

    place: int
    distance: float


class Gallery:
    """Images of both modalities, or of one, with their descriptors."""

    def __init__(self, embedder: Embedder, images: dict[Modality, list[Held]]) -> None:
        """Embeds all; an image that cannot be read is left out and named. InputError if none is left."""
        self.images: dict[Modality, list[Held]] = {}
        self.features: dict[Modality, np.ndarray] = {}
        for modality, held in images.items():
            self.images[modality], self.features[modality] = _embed(embedder, held, modality)
        if not any(self.images.values()):
            raise InputError("expected images that can be read in the gallery, got none; check what was named above")

    @classmethod
    def open(cls, embedder: Embedder, location: str, split: str, most: int, seed: int) -> "Gallery":
        """Of the shard set or the folder there. `most` images a modality, drawn by the seed where there are more."""
        is_set = "://" in location or (Path(location) / INDEX_FILE).is_file()
        images = of_shards(ShardIndex.open(location), split) if is_set else of_folder(Path(location), embedder)
        return cls(embedder, {modality: _draw(held, most, seed, modality) for modality, held in images.items()})

    def search(self, feature_D: np.ndarray, modality: Modality, top: int, without: int | None = None) -> list[Found]:
        """The `top` nearest images of a modality, nearest first, equal ones in gallery order; never `without`."""
        distance_G = 1 - self.features[modality] @ feature_D
        order = [place for place in np.argsort(distance_G, kind="stable").tolist() if place != without]
        return [Found(place, float(distance_G[place])) for place in order[:top]]


def of_shards(index: ShardIndex, split: str) -> dict[Modality, list[Held]]:
    """The images of a named list of identities of a shard set."""
    reader = ShardReader(index)
    rows = index.rows_of(index.pids_of(split))

    def held(row: int) -> Held:
        return Held(index.key(row), int(index.columns["pid"][row]), lambda: reader.pixels(row))

    codes = np.asarray(index.columns["modality"])[rows]
    return {modality: [held(row) for row in rows[codes == modality.code].tolist()] for modality in Modality}


def of_folder(folder: Path, embedder: Embedder) -> dict[Modality, list[Held]]:
    """The images below FOLDER/visible and FOLDER/infrared, one of which may be missing; nobody knows who they show.

    What is passed over (links, other kinds of files) is named.
    """
    parts = {modality: folder / modality for modality in Modality if (folder / modality).is_dir()}
    if not parts:
        raise InputError(
            f"expected a shard set ({INDEX_FILE}) or a folder with visible/ and infrared/ in it, got {folder}; sort the"
            " images into two such folders"
        )

    for part in parts.values():
        for text in left_out_below(part):
            print(f"left out: {shown(text)}", file=sys.stderr, flush=True)

    def held(path: Path, modality: Modality) -> Held:
        return Held(str(path.relative_to(folder)), None, lambda: embedder.pixels(path, modality))

    return {modality: [held(path, modality) for path in images_below(part)] for modality, part in parts.items()}


def _draw(held: Sequence[Held], most: int, seed: int, modality: Modality) -> list[Held]:
    if len(held) <= most:
        return list(held)
    print(f"{most} of {len(held)} {modality} images, drawn by seed {seed}; --most sets how many", flush=True)
    return [held[place] for place in np.sort(permutation(len(held), Stream.REPORT, seed, 1, modality.code)[:most])]


def _embed(embedder: Embedder, held: Sequence[Held], modality: Modality) -> tuple[list[Held], np.ndarray]:
    """What can be read, and its descriptors, float32 [n, d]."""
    kept: list[Held] = []
    parts = [np.empty((0, embedder.embedding_width()), np.float32)]
    for start in range(0, len(held), _BATCH):
        batch = []
        for one in held[start : start + _BATCH]:
            try:
                batch.append(embedder.read(one.read(), modality))
                kept.append(one)
            except InputError as problem:
                print(f"left out: {shown(one.name)}: {problem}", file=sys.stderr, flush=True)
        if batch:
            parts.append(embedder.embed_prepared(torch.stack(batch), modality))
    return kept, np.concatenate(parts)
