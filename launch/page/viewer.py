"""What the page shows for a query: its matches, where a point of it is found on a match, and the person on both.

This file is independent of the web: it takes and returns pixels and text. L = H*W positions of the layer-3 map.
"""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from tacaf.data.photo import Limits, Source, decode, prepare
from tacaf.model.correspondence import COMPARED, mean_maps, shown_correspondence
from tacaf.report.overlay import HEAT, MASK, overlay
from tacaf.search.album import Album, AlbumImage, Neighbour
from tacaf.search.embedder import Embedder
from tacaf.vocabulary import InputError, Modality

SHOWN = 12  # matches
EXAMPLES = 12
PANEL = 384  # height in pixels of the large pictures
THUMBNAIL = 192
UPLOAD = Limits(mib=10, megapixels=25)
_MARK = (255, 210, 0)


class Query(NamedTuple):
    """A query and its matches."""

    panel_HWC: np.ndarray  # uint8, in the model's aspect ratio
    image_CHW: torch.Tensor  # the model's input
    modality: Modality
    searched: Modality
    pid: int | None
    matches: list[Neighbour]


class Pair(NamedTuple):
    """The comparison of a query with one match."""

    matching_LL: np.ndarray
    query_mask_L: np.ndarray
    match_mask_L: np.ndarray
    comask_L: np.ndarray
    map_height: int
    match_panel_HWC: np.ndarray


class Viewer:
    """A model and an album, ready to be searched."""

    def __init__(self, embedder: Embedder, album: Album) -> None:
        assert embedder.model is not None, "an ONNX export does not give its maps"
        self.embedder, self.album, self.model = embedder, album, embedder.model
        self.limits = UPLOAD
        self.means = mean_maps(self.model, {kind: self._some(kind) for kind in album.images})

    def examples(self, modality: Modality) -> list[int]:
        """Positions of a few example images of a modality, of different identities if these are known."""
        images = self.album.images.get(modality, [])
        seen: dict[int, int] = {}
        for place, image in enumerate(images):
            seen.setdefault(place if image.pid is None else image.pid, place)
        places = list(seen.values())
        return places[:: max(1, len(places) // EXAMPLES)][:EXAMPLES]

    def search(self, source: Source, modality: Modality, searched: Modality, example: int | None = None) -> Query:
        """Search for an image. `example`: its position if it is in the album, so that it does not match itself.

        Raises InputError if the source is not an image or too large, or if the gallery lacks the modality.
        """
        if not self.album.images.get(searched):
            raise InputError(f"expected {searched} images in the gallery, got none; search the other modality")
        pixels_HWC = self.embedder.pixels(source, modality, self.limits)
        image_CHW = prepare(pixels_HWC, self.embedder.height, self.embedder.width)
        feature_D = self.embedder.embed_prepared(image_CHW[None], modality)[0]
        pid = None if example is None else self.album.images[modality][example].pid
        matches = self.album.search(feature_D, searched, SHOWN, example if modality is searched else None)
        if not matches:
            raise InputError(f"the gallery has no {searched} image other than the query; add some")
        return Query(self._panel(pixels_HWC), image_CHW, modality, searched, pid, matches)

    def compare(self, query: Query, rank: int) -> Pair:
        """The comparison of the query with its match at this rank, from 0."""
        pixels_HWC = decode(self.match(query, rank).read())
        other_CHW = prepare(pixels_HWC, self.embedder.height, self.embedder.width)
        device = self.embedder.device
        correspondence = shown_correspondence(
            self.model,
            *(query.image_CHW[None].to(device), query.modality),
            *(other_CHW[None].to(device), query.searched),
            self.means,
        )
        matching_LL, query_mask_L, match_mask_L, comask_L = (tensor[0].cpu().numpy() for tensor in correspondence[:4])
        return Pair(matching_LL, query_mask_L, match_mask_L, comask_L, correspondence.height, self._panel(pixels_HWC))

    def _some(self, modality: Modality) -> torch.Tensor:
        """A few of the album's images as the model sees them, N x 3 x H x W."""
        images = self.album.images[modality]
        chosen = images[:: max(1, len(images) // COMPARED)][:COMPARED]
        seen = [prepare(image.read(), self.embedder.height, self.embedder.width) for image in chosen]
        return torch.stack(seen).to(self.embedder.device) if seen else torch.empty(0)

    def match(self, query: Query, rank: int) -> AlbumImage:
        """The image at this rank, from 0."""
        return self.album.images[query.searched][query.matches[rank].place]

    def caption(self, query: Query, rank: int) -> str:
        """The match's identity, if known, whether it is that of the query, and the distance."""
        image = self.match(query, rank)
        known = "" if image.pid is None or query.pid is None else ("✓ " if image.pid == query.pid else "✗ ")
        who = image.name if image.pid is None else str(image.pid)
        return f"{known}{who} · {query.matches[rank].distance:.3f}"

    def _panel(self, pixels_HWC: np.ndarray) -> np.ndarray:
        width = round(PANEL * self.embedder.width / self.embedder.height)
        return np.asarray(Image.fromarray(pixels_HWC).resize((width, PANEL), Image.Resampling.BILINEAR))


def thumbnail(source: Source) -> np.ndarray:
    """A small picture of the same aspect ratio."""
    image = Image.fromarray(decode(source))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return np.asarray(image)


def position_at(pair: Pair, x: float, y: float) -> int:
    """The position of the map at a point of a panel; x and y are fractions in [0, 1]."""
    width = len(pair.comask_L) // pair.map_height
    row = min(int(y * pair.map_height), pair.map_height - 1)
    return row * width + min(int(x * width), width - 1)


def landing(query: Query, pair: Pair, position: int) -> tuple[np.ndarray, np.ndarray]:
    """The query with this position framed, and the match coloured where it is found, most at the largest share."""
    share_L = pair.matching_LL[position]
    framed_HWC = query.panel_HWC.copy()
    height, width = framed_HWC.shape[:2]
    columns = len(share_L) // pair.map_height
    row, column = divmod(position, columns)
    top, bottom = (round(height * edge / pair.map_height) for edge in (row, row + 1))
    left, right = (round(width * edge / columns) for edge in (column, column + 1))
    inside_HWC = framed_HWC[top + 3 : bottom - 3, left + 3 : right - 3].copy()
    framed_HWC[top:bottom, left:right] = _MARK
    framed_HWC[top + 3 : bottom - 3, left + 3 : right - 3] = inside_HWC
    return framed_HWC, overlay(pair.match_panel_HWC, share_L / share_L.max(), pair.map_height, HEAT)


def masks(query: Query, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """The query and the match with their person masks drawn over them."""
    return (
        overlay(query.panel_HWC, pair.query_mask_L, pair.map_height, MASK),
        overlay(pair.match_panel_HWC, pair.match_mask_L, pair.map_height, MASK),
    )
