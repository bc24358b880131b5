"""Ranked lists as a self-contained HTML file with small pictures, for light and dark mode and for phones."""

import base64
import io
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from PIL import Image

from tacaf.data.photo import decode
from tacaf.files import shown
from tacaf.images import GreyScale
from tacaf.pages import render
from tacaf.search.ranked_lists import SearchResult
from tacaf.vocabulary import InputError, Modality

PAGE = Path(__file__).with_name("search.html")
THUMBNAIL = (96, 192)  # pixels at most
SHOWN = 200  # queries on the page; the JSON has all


def page(
    found: SearchResult, query: Path, gallery: Path | None, scales: Mapping[Modality, GreyScale] | None = None
) -> str:
    """The page of a search's lists. Gallery images without a picture in the folder `gallery` are shown by name only.

    query: the folder or the single image. scales: the model's, by modality. Names are relative and never lead out of
    their folder.
    """
    thumbnail = lru_cache(maxsize=4096)(_thumbnail)  # a gallery image is in many lists
    own, theirs = ((scales or {}).get(modality) for modality in (found.query_modality, found.gallery_modality))
    lists = [
        {
            "query": shown(one.query),
            "picture": thumbnail(query / one.query if query.is_dir() else query, own),
            "matches": [
                {
                    "rank": match.rank,
                    "distance": match.distance,
                    "name": shown(match.name),
                    "picture": thumbnail(_inside(gallery, match.name), theirs),
                }
                for match in one.matches
            ],
        }
        for one in found.queries[:SHOWN]
    ]
    return render(PAGE, found={**found.as_json(), "left_out": list(map(shown, found.left_out))}, lists=lists)


def _inside(folder: Path | None, name: str) -> Path | None:
    """The file of this name in the folder; None if the name, from an untrusted index, leads out of the folder."""
    if folder is None or not (folder / name).resolve().is_relative_to(folder.resolve()):
        return None
    return folder / name


def _thumbnail(path: Path | None, scale: GreyScale | None) -> str | None:
    """A small JPEG as a data URI; None if the image cannot be read."""
    if path is None:
        return None
    try:
        image = Image.fromarray(decode(path, scale=scale))
    except InputError:
        return None
    image.thumbnail(THUMBNAIL)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"
