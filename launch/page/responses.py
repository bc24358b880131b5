"""The page's responses as values for JSON: ranked lists, comparisons and points, with their pictures inside.

Everything here runs in the model's thread.
"""

import base64
from pathlib import Path
from typing import Any

import numpy as np

from launch.page.incoming import MOST_UPLOAD, SearchRequest
from launch.page.memory import KeptQuery
from launch.page.viewer import Pair, Query, Viewer, landing, masks, position_at, thumbnail
from tacaf.data.photo import Source, read_file
from tacaf.files import shown
from tacaf.report.overlay import webp
from tacaf.search.album import AlbumImage
from tacaf.vocabulary import InputError, Modality


class Responses:
    """The responses for one model and album. Methods raise InputError for images that cannot be used."""

    def __init__(self, viewer: Viewer) -> None:
        self.viewer = viewer

    def gallery(self) -> dict[str, Any]:
        """What the page needs at the beginning: the modalities, their examples, and the limit of an upload."""
        album = {modality: self.viewer.album.images.get(modality, []) for modality in Modality}
        return {
            "begin": next(modality for modality in reversed(Modality) if album[modality]),
            "most_bytes": MOST_UPLOAD,
            "examples": {
                modality: [
                    {"picture": _thumbnail(images[place]), "name": shown(images[place].name)}
                    for place in self.viewer.examples(modality)
                ]
                for modality, images in album.items()
            },
        }

    def of_upload(self, data: bytes, search: SearchRequest) -> tuple[KeptQuery, dict[str, Any]]:
        """The query to store, and the response."""
        return self._found(self.viewer.search(data, search.modality, search.searched))

    def of_example(self, place: int, search: SearchRequest) -> tuple[KeptQuery, dict[str, Any]]:
        """Like `of_upload`, for the image at this position of the gallery."""
        image = self.viewer.album.images[search.modality][place]
        return self._found(self.viewer.search(_source_of(image), search.modality, search.searched, place))

    def comparison(self, kept: KeptQuery, rank: int) -> dict[str, Any]:
        """The comparison with the match of this rank: where its likeliest person position is found, and both masks."""
        pair = self._pair(kept, rank)
        query_mask, match_mask = masks(kept.query, pair)
        response = _landed(kept.query, pair, int(pair.comask_L.argmax()))
        response["pictures"] |= {"mask": _picture(query_mask), "other-mask": _picture(match_mask)}
        return {"rank": rank, "rows": pair.map_height, "columns": len(pair.comask_L) // pair.map_height, **response}

    def place(self, kept: KeptQuery, rank: int, x: float, y: float) -> dict[str, Any]:
        """Where a point of the query, as fractions of its width and height, is found on the match of this rank."""
        pair = self._pair(kept, rank)
        return {"rank": rank, **_landed(kept.query, pair, position_at(pair, x, y))}

    def _found(self, query: Query) -> tuple[KeptQuery, dict[str, Any]]:
        """The ranked list, and the comparison with the nearest match or the reason why it cannot be shown."""
        kept = KeptQuery(query)
        matches = [
            {"picture": _thumbnail(self.viewer.match(query, rank)), "caption": shown(self.viewer.caption(query, rank))}
            for rank in range(len(query.matches))
        ]
        try:
            comparison = self.comparison(kept, 0)
        except InputError as problem:
            comparison = {"problem": str(problem)}
        facts = {"modality": query.modality, "searched": query.searched}
        return kept, {**facts, "matches": matches, "comparison": comparison}

    def _pair(self, kept: KeptQuery, rank: int) -> Pair:
        """The comparison with this match."""
        try:
            return kept.pair(rank, self.viewer.compare)
        except InputError:
            raise _gone(self.viewer.match(kept.query, rank)) from None


def _landed(query: Query, pair: Pair, position: int) -> dict[str, Any]:
    framed, heat = landing(query, pair, position)
    return {"position": position, "pictures": {"query": _picture(framed), "heat": _picture(heat)}}


def _picture(image_HWC: np.ndarray) -> str:
    """An image as a data URI."""
    return f"data:image/webp;base64,{base64.b64encode(webp(image_HWC)).decode()}"


def _thumbnail(image: AlbumImage) -> str | None:
    """A small picture of an image; None if it can no longer be read."""
    try:
        return _picture(thumbnail(image.read()))
    except InputError:
        return None


def _source_of(image: AlbumImage) -> Source:
    try:
        source = image.read()
        return read_file(source) if isinstance(source, Path) else source
    except InputError:
        raise _gone(image) from None


def _gone(image: AlbumImage) -> InputError:
    """An error that, unlike the reader's, does not name folders of this machine."""
    return InputError(f"{shown(image.name)}, an image of the gallery, can no longer be read")
