"""Find people across folders of images: python launch/search.py --run RUN --gallery DIR --query DIR|IMAGE --html FILE

The gallery can be kept with --index FILE, opened again without its images, grow (--gallery adds what is new) and shrink
(--remove NAME). Infrared queries in visible images unless said otherwise; any two modalities, also one. Images that
cannot be read are counted and listed.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("launch.search")

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, get_args

from launch.page.search_page import page
from tacaf.command import Parser, entry, to_device, to_path
from tacaf.data.photo import images_below, left_out_below
from tacaf.files import shown, write_json, write_whole
from tacaf.images import given_scale
from tacaf.search.catalogue import Catalogue, Embedded, embed_files, locked
from tacaf.search.embedder import Embedder, modality_of
from tacaf.search.nearest import FAISS_FROM, choose_engine, nearest
from tacaf.vocabulary import Embedding, InputError, Modality


def search(wanted: argparse.Namespace) -> None:
    """Do what is asked in order: open, remove, add and save, search, write."""
    embedder = Embedder.load(wanted.run, wanted.device, wanted.thermal_range) if wanted.run else None
    changes = wanted.index and (wanted.remove or wanted.gallery)
    with locked(wanted.index) if changes else nullcontext():
        catalogue = open_catalogue(wanted, embedder)
        left_out = change(wanted, embedder, catalogue)
    if wanted.query:
        assert embedder is not None
        found = ranked_lists(wanted, embedder, catalogue, left_out)
        write(wanted, found, embedder)
        left_out = found["left_out"]
    for text in left_out:
        print(f"left out: {shown(text)}", file=sys.stderr)
    if left_out:
        print(f"{len(left_out)} files left out, listed above", file=sys.stderr)


def open_catalogue(wanted: argparse.Namespace, embedder: Embedder | None) -> Catalogue:
    """The kept gallery where there is one, else an empty one."""
    if not wanted.index or not wanted.index.exists():
        if not wanted.gallery or embedder is None or wanted.remove or wanted.list:
            what = f"an index at {wanted.index}" if wanted.index else "a gallery"
            raise InputError(f"expected {what}, got none; make one with --run and --gallery")
        modality = wanted.gallery_modality or Modality.VISIBLE
        return Catalogue.new(embedder, modality, wanted.embedding, bool(wanted.flip))
    catalogue = Catalogue.open(wanted.index)
    if not catalogue.sealed:
        print(
            f"note: {shown(wanted.index)} is of an older version, without a hash that would show damage; the next"
            " change adds one",
            file=sys.stderr,
        )
    if embedder is not None:
        flip = catalogue.flip if wanted.flip is None else wanted.flip
        catalogue.must_fit(embedder, wanted.embedding or catalogue.embedding, flip)
    if wanted.gallery_modality not in (None, catalogue.modality):
        raise InputError(
            f"expected the index's modality, {catalogue.modality}, got {wanted.gallery_modality}; keep one index each"
        )
    return catalogue


def change(wanted: argparse.Namespace, embedder: Embedder | None, catalogue: Catalogue) -> list[str]:
    """Remove, list, add, save; a sentence for every image that was left out."""
    if wanted.remove:
        removed = catalogue.remove(wanted.remove)
        catalogue.save(wanted.index)
        print("\n".join(["removed from the index:", *map(shown, removed)]))
        print(f"{len(removed)} images removed; delete their files too, or the next --gallery brings them back")
    if wanted.list:
        print("\n".join(map(shown, catalogue.names)))
    if not wanted.gallery:
        return []
    assert embedder is not None

    def save() -> None:
        if wanted.index:
            catalogue.save(wanted.index)

    added, left_out = catalogue.add(embedder, wanted.gallery, save)
    print(f"gallery: {added} images added, {len(catalogue.names)} in all, {len(left_out)} left out")
    if not catalogue.names:
        first = f"; the first: {left_out[0]}" if left_out else ""
        raise InputError(f"expected readable images in {wanted.gallery}, got none{first}; check the folder")
    save()
    return left_out


def ranked_lists(
    wanted: argparse.Namespace, embedder: Embedder, catalogue: Catalogue, left_out: list[str]
) -> dict[str, Any]:
    """What the JSON holds: for each readable query its nearest images, the query's own file left out by its content."""
    if not catalogue.names:
        raise InputError("expected images in the gallery, got an empty index; add some with --gallery")
    queries, names = embed_queries(wanted, embedder, catalogue, left_out)
    own = Counter(catalogue.sha256)  # as many places as the query itself may take
    most = wanted.top + max((own[content] for content in queries.sha256_N), default=0)
    row_QK, distance_QK = nearest(queries.descriptors_ND, catalogue.descriptors_GD, most, wanted.engine)
    lists = []
    for name, content, row_K, distance_K in zip(names, queries.sha256_N, row_QK, distance_QK, strict=True):
        kept = [k for k, row in enumerate(row_K) if catalogue.sha256[row] != content][: wanted.top]
        matches = [
            {"rank": place, "name": catalogue.names[row_K[k]], "distance": round(float(distance_K[k]), 6)}
            for place, k in enumerate(kept, 1)
        ]
        lists.append({"query": name, "sha256": content, "matches": matches})
    return {
        "format": "tacaf-search",
        "version": 1,
        "model_sha256": catalogue.model_sha256,
        "trained_on": embedder.card["trained_on"],
        "embedding": catalogue.embedding,
        "flip": catalogue.flip,
        "query_modality": str(wanted.query_modality),
        "gallery_modality": str(catalogue.modality),
        "gallery_images": len(catalogue.names),
        "engine": choose_engine(wanted.engine, len(catalogue.names)),
        "top": wanted.top,
        "queries": lists,
        "left_out": left_out + queries.unreadable,
    }


def embed_queries(
    wanted: argparse.Namespace, embedder: Embedder, catalogue: Catalogue, left_out: list[str]
) -> tuple[Embedded, list[str]]:
    """Descriptors of the query images and their names: below the query folder, or the one file's."""
    home, paths = wanted.query.parent, [wanted.query]
    if wanted.query.is_dir():
        home, paths = wanted.query, images_below(wanted.query)
        left_out += left_out_below(home)
    found = embed_files(embedder, paths, wanted.query_modality, catalogue.embedding, catalogue.flip)
    if not found.places_N:
        first = f"; the first: {found.unreadable[0]}" if found.unreadable else ""
        raise InputError(f"expected readable images to search for in {wanted.query}, got none{first}; check the path")
    return found, [paths[place].relative_to(home).as_posix() for place in found.places_N]


def write(wanted: argparse.Namespace, found: dict[str, Any], embedder: Embedder) -> None:
    """The JSON and the page, each whole or not at all; then where they are."""
    if wanted.json:
        write_json(wanted.json, found)
    if wanted.html:
        write_whole(wanted.html, page(found, wanted.query, wanted.gallery, embedder.scales))
    print(f"{len(found['queries'])} queries against {found['gallery_images']} images ({found['engine']})")
    for what, path in (("lists", wanted.json), ("page", wanted.html)):
        if path:
            print(f"{what}: {shown(path)}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [str(modality) for modality in Modality]
    add = parser.add_argument
    add("--run", type=to_path, help="a finished run, or an export of one; not needed to --remove or --list")
    add("--gallery", type=to_path, help="folder of images to search in; with --index, what is new is added")
    add("--query", type=to_path, help="folder of images, or one image, to search for")
    add("--gallery-modality", choices=names, help="default: the index's, else visible")
    add("--query-modality", choices=names, default=str(Modality.INFRARED), help="default: %(default)s")
    add("--index", type=to_path, help="file that keeps the gallery's descriptors")
    add("--remove", nargs="+", metavar="NAME", help="take out of --index: names, folders of names, or image files")
    add("--list", action="store_true", help="print the names in --index")
    add("--top", type=int, default=10, help="matches per query; default: %(default)s")
    add("--embedding", choices=get_args(Embedding), help="default: the index's, else the one the run was scored with")
    add("--flip", action="store_true", default=None, help="average with the mirror image; default: as in the index")
    add(
        "--engine",
        choices=("auto", "exact", "faiss"),
        default="auto",
        help=f"auto: FAISS from {FAISS_FROM:,} images on, where it is installed",
    )
    add(
        "--thermal-range",
        nargs="+",
        metavar=("LOW", "HIGH"),
        help="grey values that become black and white in infrared images of more than 8 bits, or the word per-image;"
        " default: those of the model's training set",
    )
    add("--device", type=to_device, default="cpu", help="cpu or cuda")
    add("--json", type=to_path, help="write the lists there")
    add("--html", type=to_path, help="write a page with pictures there")
    return parser.parse_args(argv)


def check(wanted: argparse.Namespace) -> None:
    """InputError for options that do not go together; modalities become `Modality`."""
    problems = [
        (wanted.remove and not wanted.index, "--remove: expected --index, the file to take them out of, got none"),
        (wanted.list and not wanted.index, "--list: expected --index, got none"),
        (wanted.query and not (wanted.json or wanted.html), "--query: expected --html or --json to write, got neither"),
        ((wanted.json or wanted.html) and not wanted.query, "expected --query, what to search for, got none"),
        ((wanted.query or wanted.gallery) and not wanted.run, "expected --run, the trained model, got none"),
        (not (wanted.query or wanted.index), "expected --query or --index, got neither"),
        (
            not (wanted.query or wanted.gallery or wanted.remove or wanted.list),
            "expected something to do with --index: --query, --gallery, --remove or --list, got none",
        ),
        (wanted.top < 1, f"--top: expected at least 1, got {wanted.top}"),
    ]
    for wrong, text in problems:
        if wrong:
            raise InputError(f"{text}; see --help")
    for path in (wanted.json, wanted.html):
        if path and not path.parent.is_dir():
            raise InputError(f"expected a folder to write {path} into, got none; make {path.parent} first")
    given_scale(wanted.thermal_range, "--thermal-range")
    choose_engine(wanted.engine, 0)
    wanted.query_modality = modality_of(wanted.query_modality)
    wanted.gallery_modality = wanted.gallery_modality and modality_of(wanted.gallery_modality)


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    wanted = parse(argv)
    check(wanted)
    search(wanted)
    return 0
