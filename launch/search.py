"""Find people across folders of images: python launch/search.py --run RUN --gallery DIR --query DIR|IMAGE --html FILE

--index FILE saves the gallery, so that it can be searched again without its images; --gallery then adds only new
images, and --remove NAME removes images. Queries are infrared and the gallery is visible unless you choose otherwise;
any two modalities work, even the same one twice. Unreadable images are counted and listed.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("launch.search")

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import get_args

from tacaf.command import Parser, entry, to_device, to_path
from tacaf.files import shown, write_json, write_whole
from tacaf.images import given_scale
from tacaf.search.catalogue import Catalogue
from tacaf.search.catalogue_file import locked, open_catalogue, save_catalogue
from tacaf.search.embedder import Embedder
from tacaf.search.nearest import FAISS_FROM, choose_engine
from tacaf.search.ranked_lists import SearchResult, search
from tacaf.search.search_page import page
from tacaf.vocabulary import Embedding, InputError, Modality


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    check(args)
    run(args)
    return 0


def run(args: argparse.Namespace) -> None:
    """Do what the options say, in this order: open, remove, list, add and save, search, write."""
    embedder = Embedder.load(args.run, args.device, args.thermal_range) if args.run else None
    changes = args.index and (args.remove or args.gallery)
    with locked(args.index) if changes else nullcontext():
        catalogue = the_catalogue(args, embedder)
        if args.remove:
            remove(args, catalogue)
        if args.list:
            print("\n".join(map(shown, catalogue.names)))
        left_out = add(args, embedder, catalogue) if args.gallery else []
    if args.query:
        assert embedder is not None
        result = search(
            embedder,
            catalogue,
            args.query,
            Modality(args.query_modality),
            top=args.top,
            engine=args.engine,
            left_out=left_out,
        )
        write(args, result, embedder)
        left_out = result.left_out
    for text in left_out:
        print(f"left out: {shown(text)}", file=sys.stderr)
    if left_out:
        print(f"{len(left_out)} files left out, listed above", file=sys.stderr)


def the_catalogue(args: argparse.Namespace, embedder: Embedder | None) -> Catalogue:
    """The saved gallery if there is one, otherwise an empty one."""
    if not args.index or not args.index.exists():
        if not args.gallery or embedder is None or args.remove or args.list:
            what = f"the index {args.index} does not exist" if args.index else "there is no gallery"
            raise InputError(f"{what}; make one with --run and --gallery")
        modality = Modality(args.gallery_modality or Modality.VISIBLE)
        return Catalogue.new(embedder, modality, args.embedding, bool(args.flip))
    catalogue = open_catalogue(args.index)
    if embedder is not None:
        flip = catalogue.flip if args.flip is None else args.flip
        catalogue.must_fit(embedder, args.embedding or catalogue.embedding, flip)
    if args.gallery_modality not in (None, catalogue.modality):
        raise InputError(
            f"expected the index's modality, {catalogue.modality}, got {args.gallery_modality}; make one index for each"
        )
    return catalogue


def remove(args: argparse.Namespace, catalogue: Catalogue) -> None:
    """Remove what --remove names, and save."""
    removed = catalogue.remove(args.remove)
    save_catalogue(args.index, catalogue)
    print("\n".join(["removed from the index:", *map(shown, removed)]))
    print(f"{len(removed)} images removed; delete their files too, or the next --gallery adds them again")


def add(args: argparse.Namespace, embedder: Embedder | None, catalogue: Catalogue) -> list[str]:
    """Add new images of --gallery, and save. Returns a sentence for every file that was left out."""
    assert embedder is not None

    def save() -> None:
        if args.index:
            save_catalogue(args.index, catalogue)

    added, left_out = catalogue.add(embedder, args.gallery, save)
    print(f"gallery: {added} images added, {len(catalogue.names)} in all, {len(left_out)} left out")
    if not catalogue.names:
        first = f"; the first: {left_out[0]}" if left_out else ""
        raise InputError(f"expected readable images in {args.gallery}, got none{first}; check the folder")
    save()
    return left_out


def write(args: argparse.Namespace, result: SearchResult, embedder: Embedder) -> None:
    """Write the JSON and the page, each atomically, and print where they are."""
    if args.json:
        write_json(args.json, result.as_json())
    if args.html:
        write_whole(args.html, page(result, args.query, args.gallery, embedder.scales))
    print(f"{len(result.queries)} queries against {result.gallery_images} images ({result.engine})")
    for what, path in (("lists", args.json), ("page", args.html)):
        if path:
            print(f"{what}: {shown(path)}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [str(modality) for modality in Modality]
    add = parser.add_argument
    add("--run", type=to_path, help="a finished run, or an export of one; not needed for --remove and --list")
    add("--gallery", type=to_path, help="folder of images to search in; with --index, its new images are added")
    add("--query", type=to_path, help="folder of query images, or one query image")
    add("--gallery-modality", choices=names, help="default: the index's, or visible")
    add("--query-modality", choices=names, default=str(Modality.INFRARED), help="default: %(default)s")
    add("--index", type=to_path, help="file in which the gallery's descriptors are saved")
    add(
        "--remove",
        nargs="+",
        metavar="NAME",
        help="remove images from --index: names, folders of names, or image files",
    )
    add("--list", action="store_true", help="print the names in --index")
    add("--top", type=int, default=10, help="matches per query; default: %(default)s")
    add(
        "--embedding", choices=get_args(Embedding), help="default: the index's, or the one that the run was scored with"
    )
    add(
        "--flip",
        action="store_true",
        default=None,
        help="average each descriptor with that of the mirror image; default: as in the index",
    )
    add(
        "--engine",
        choices=("auto", "exact", "faiss"),
        default="auto",
        help=f"how to search; auto: FAISS for {FAISS_FROM:,} images and more, if it is installed",
    )
    add(
        "--thermal-range",
        nargs="+",
        metavar=("LOW", "HIGH"),
        help="grey values that become black and white in infrared images of more than 8 bits, or the word per-image;"
        " default: those of the model's training set",
    )
    add("--device", type=to_device, default="cpu", help="where the model runs: cpu or cuda; default: cpu")
    add("--json", type=to_path, help="write the ranked lists to this file")
    add("--html", type=to_path, help="write a page with pictures to this file")
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
    """Raise InputError for wrong options and wrong combinations."""
    problems = [
        (args.remove and not args.index, "--remove needs --index, the file to remove images from"),
        (args.list and not args.index, "--list needs --index, the file whose names are printed"),
        (args.query and not (args.json or args.html), "--query needs --html or --json, the file to write"),
        ((args.json or args.html) and not args.query, "--html and --json need --query, the images to search for"),
        ((args.query or args.gallery) and not args.run, "--query and --gallery need --run, the trained model"),
        (not (args.query or args.index), "expected --query or --index, got neither"),
        (
            not (args.query or args.gallery or args.remove or args.list),
            "--index needs --query, --gallery, --remove or --list, the action to take",
        ),
        (args.top < 1, f"--top: expected at least 1, got {args.top}"),
    ]
    for wrong, text in problems:
        if wrong:
            raise InputError(f"{text}; see --help")
    for path in (args.json, args.html):
        if path and not path.parent.is_dir():
            raise InputError(f"cannot write {path}, because its folder does not exist; create {path.parent} first")
    given_scale(args.thermal_range, "--thermal-range")
    choose_engine(args.engine, 0)
