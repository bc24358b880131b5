"""Draws the README's picture: a query, its nearest matches, and where parts of the query are on the first match.

    python perf/readme_picture.py --run demo/run --shards demo/shards --query infrared_0154_c6_0004 --out FILE

The matches are visible images of the test identities, nearest first, whether right or wrong. The lines are CMAAM's
matching on layer 3, which was found to follow the body (docs/ablation.md).
"""

from tacaf.start import start

if __name__ == "__main__":
    start("perf.readme_picture")

import argparse
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from PIL import Image

from tacaf.command import Parser, entry, to_location, to_path
from tacaf.data.index import ShardIndex
from tacaf.files import shown, write_whole
from tacaf.model.correspondence import shown_correspondence
from tacaf.report.overlay import Line, match_lines
from tacaf.search.album import Album, AlbumImage, images_of_shards
from tacaf.search.embedder import Embedder
from tacaf.vocabulary import InputError, Modality

ROWS, COLUMNS = 2, 5  # of the matches
RIGHT, WRONG, PLAIN = "#2fa36b", "#d6404a", "#9aa4ad"
SIZE = 9  # of the text in points


class Shown(NamedTuple):
    """An image of the picture: uint8 H x W x 3, the colour of its frame, and the text below it."""

    pixels_HWC: np.ndarray
    colour: str
    text: str


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    embedder = Embedder.load(args.run)
    images = images_of_shards(ShardIndex.open(args.shards), "test")
    query = next((image for image in images[Modality.INFRARED] if image.name == args.query), None)
    if query is None:
        raise InputError(f"--query: expected the key of an infrared test image, got {shown(args.query)}")
    album = Album.of(embedder, {Modality.VISIBLE: images[Modality.VISIBLE]})
    near = album.search(embedder.embed([query.read()], "infrared")[0], Modality.VISIBLE, ROWS * COLUMNS)
    matches = [(album.images[Modality.VISIBLE][one.place], one.distance) for one in near]
    lines = lines_between(embedder, query.read(), matches[0][0].read())
    write_whole(args.out, draw(Shown(query.read(), PLAIN, "query, infrared"), [*map(judged(query), matches)], lines))
    print(args.out)
    return 0


def judged(query: AlbumImage) -> Callable[[tuple[AlbumImage, float]], Shown]:
    """A match and its distance, as right or wrong for this query."""

    def judge(match: tuple[AlbumImage, float]) -> Shown:
        image, distance = match
        same = image.pid == query.pid
        return Shown(image.read(), RIGHT if same else WRONG, f"{'✓' if same else '✗'} {distance:.2f}")

    return judge


def lines_between(embedder: Embedder, query_HWC: np.ndarray, match_HWC: np.ndarray) -> list[Line]:
    """Lines from points of the query to their positions on the match, one for each row of the model's map."""
    assert embedder.model is not None, "a run has a model"
    query_CHW, match_CHW = embedder.read(query_HWC, "infrared"), embedder.read(match_HWC, "visible")
    pair = (query_CHW[None], Modality.INFRARED, match_CHW[None], Modality.VISIBLE)
    found = shown_correspondence(embedder.model, *pair, means={})
    return match_lines(found.matching_NLL[0].numpy(), found.comask_NL[0].numpy(), found.height)


def draw(query: Shown, matches: Sequence[Shown], lines: Sequence[Line]) -> bytes:
    """The picture, a WebP: the query with lines to its first match on the left, all matches on the right."""
    figure = Figure(figsize=(9.6, 4.4), facecolor="white", dpi=125)
    halves: Any = figure.subfigures(1, 2, width_ratios=[1.15, 1])
    left, right = halves
    pair = left.subplots(1, 2, gridspec_kw={"wspace": 0.5, "left": 0.04, "right": 0.94, "top": 0.9, "bottom": 0.08})
    for axes, image in zip(pair, (query, matches[0]), strict=True):
        show(axes, image)
    for line in lines:
        start_xy, end_xy = (line.x, 1 - line.y), (line.to_x, 1 - line.to_y)
        figure.add_artist(
            ConnectionPatch(
                start_xy, end_xy, pair[0].transAxes, pair[1].transAxes, color=line.colour, lw=1.6, arrowstyle="-|>"
            )
        )
    left.suptitle("where parts of the query are on the first match", y=0.98, fontsize=SIZE)
    spaces = {"left": 0.03, "right": 0.98, "top": 0.9, "bottom": 0.08, "hspace": 0.2, "wspace": 0.14}
    for axes, image in zip(right.subplots(ROWS, COLUMNS, gridspec_kw=spaces).flat, matches, strict=True):
        show(axes, image)
    right.suptitle("visible images, nearest first", y=0.98, fontsize=SIZE)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    picture = io.BytesIO()
    Image.open(data).convert("RGB").save(picture, "WEBP", quality=88, method=6)
    return picture.getvalue()


def show(axes: Axes, image: Shown) -> None:
    axes.imshow(image.pixels_HWC, aspect="auto")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(image.text, labelpad=3, fontsize=SIZE)
    for spine in axes.spines.values():
        spine.set(edgecolor=image.colour, linewidth=3)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=to_path, required=True, help="a finished run")
    parser.add_argument("--shards", type=to_location, required=True, help="its shard set")
    parser.add_argument("--query", required=True, metavar="KEY", help="key of an infrared test image")
    parser.add_argument("--out", type=to_path, required=True, help="the picture, a .webp file")
    return parser.parse_args(argv)
