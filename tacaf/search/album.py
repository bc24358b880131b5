"""An album: the images of a shard set or of a folder, embedded once, for searching and viewing.

Unlike a catalogue, an album is not saved, and it can read its images again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from tacaf.search.nearest import nearest
from tacaf.vocabulary import INDEX_FILE, InputError, Modality


class AlbumImage(NamedTuple):
    """An image of an album. `read` returns its pixels, uint8 [H, W, 3], so that no image is kept in memory."""

    name: str
    pid: int | None  # None if unknown
    read: Callable[[], np.ndarray]


class Neighbour(NamedTuple):
    """An image near a query: its position in its modality's list, and its cosine distance."""

    place: int
    distance: float


@dataclass(frozen=True, kw_only=True)
class Album:
    """Images of one or both modalities, with their descriptors."""

    images: Mapping[Modality, Sequence[AlbumImage]]
    descriptors: Mapping[Modality, np.ndarray]  # float32 [n, d], a row for each of `images`
    left_out: Sequence[str]  # a sentence for each image that cannot be shown
    drawn: Sequence[str]  # a sentence for each modality of which only some images were drawn

    @classmethod
    def open(cls, embedder: Embedder, location: str, split: str, most: int, seed: int) -> "Album":
        """The album of the shard set or the folder at `location`.

        most: the limit of images of each modality; if there are more, so many are drawn by `seed`. split: the split of
        a shard set. Raises InputError if no image can be read.
        """
        is_set = "://" in location or (Path(location) / INDEX_FILE).is_file()
        left_out: list[str] = []
        if is_set:
            available = images_of_shards(ShardIndex.open(location), split)
        else:
            available = images_of_folder(Path(location), embedder)
            left_out += [text for modality in available for text in left_out_below(Path(location) / modality)]
        images = {modality: _draw(several, most, seed, modality) for modality, several in available.items()}
        drawn = [
            f"{most} of {len(several)} {modality} images, drawn by seed {seed}; --most sets the number"
            for modality, several in available.items()
            if len(several) > most
        ]
        return cls.of(embedder, images, left_out, drawn)

    @classmethod
    def of(
        cls,
        embedder: Embedder,
        images: Mapping[Modality, Sequence[AlbumImage]],
        left_out: Sequence[str] = (),
        drawn: Sequence[str] = (),
    ) -> "Album":
        """Embed all images. Unreadable images are left out and reported. Raises InputError if none is left."""
        kept: dict[Modality, list[AlbumImage]] = {modality: [] for modality in images}
        unreadable = []

        def readable(modality: Modality) -> Iterator[torch.Tensor]:
            for image in images[modality]:
                try:
                    image_CHW = embedder.read(image.read(), modality)
                except InputError as problem:
                    unreadable.append(f"{image.name}: {problem}")
                    continue
                kept[modality].append(image)
                yield image_CHW

        descriptors = {modality: embedder.embed_each(readable(modality), modality) for modality in images}
        left_out = [*left_out, *unreadable]
        if not any(kept.values()):
            first = f"; the first: {shown(left_out[0])}" if left_out else ""
            raise InputError(f"expected readable images in the gallery, got none{first}; check the images")
        return cls(images=kept, descriptors=descriptors, left_out=left_out, drawn=drawn)

    def search(
        self, descriptor_D: np.ndarray, modality: Modality, top: int, without: int | None = None
    ) -> list[Neighbour]:
        """The `top` nearest images of a modality, nearest first, equal ones in the album's order, except `without`."""
        more = top + (without is not None)
        row_1K, distance_1K = nearest(descriptor_D[None], self.descriptors[modality], more, "exact")
        neighbours = zip(row_1K[0].tolist(), distance_1K[0].tolist(), strict=True)
        return [Neighbour(place, distance) for place, distance in neighbours if place != without][:top]


def images_of_shards(index: ShardIndex, split: str) -> dict[Modality, list[AlbumImage]]:
    """The images of a split of a shard set."""
    reader = ShardReader(index)
    rows = index.rows_of(index.pids_of(split))

    def image(row: int) -> AlbumImage:
        return AlbumImage(index.key(row), int(index.columns["pid"][row]), lambda: reader.pixels(row))

    codes = np.asarray(index.columns["modality"])[rows]
    return {modality: [image(row) for row in rows[codes == modality.code].tolist()] for modality in Modality}


def images_of_folder(folder: Path, embedder: Embedder) -> dict[Modality, list[AlbumImage]]:
    """The images below FOLDER/visible and FOLDER/infrared, one of which may be missing. Their pids are unknown."""
    parts = {modality: folder / modality for modality in Modality if (folder / modality).is_dir()}
    if not parts:
        raise InputError(
            f"expected a shard set ({INDEX_FILE}) or a folder with visible/ and infrared/ in it, got {folder}; sort the"
            " images into two such folders"
        )

    def image(path: Path, modality: Modality) -> AlbumImage:
        return AlbumImage(str(path.relative_to(folder)), None, lambda: embedder.pixels(path, modality))

    return {modality: [image(path, modality) for path in images_below(part)] for modality, part in parts.items()}


def _draw(images: Sequence[AlbumImage], most: int, seed: int, modality: Modality) -> Sequence[AlbumImage]:
    """The images, or `most` of them drawn by the seed, in their order."""
    if len(images) <= most:
        return images
    return [images[place] for place in np.sort(permutation(len(images), Stream.REPORT, seed, 1, modality.code)[:most])]
