"""Export a trained model: python launch/export.py --run RUN --to safetensors|onnx [--out DIR] [--images DIR]

This writes a folder with the weights and card.json, which describes the preprocessing, the descriptor, the results and
the training set. safetensors: the model without its classifiers, which depend on the training identities. onnx:
visible.onnx and infrared.onnx (each modality has its own stem), with the input `images` float32 [batch, 3, H, W],
prepared as card.json describes, and the output `embedding` float32 [batch, width]. Before the folder appears, its
descriptors of some images are compared with the run's.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("launch.export")

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from shards.pedestrians.synth import Shot, picture
from tacaf.command import Parser, entry, to_path
from tacaf.data.index import ShardIndex
from tacaf.data.photo import images_below, left_out_below
from tacaf.data.reader import ShardReader
from tacaf.files import sha256_of, shown, whole_folder
from tacaf.model.file import MODEL
from tacaf.run_files import CONFIG_FILE
from tacaf.search import exporting
from tacaf.search.card import CARD, write_card
from tacaf.search.embedder import Embedder
from tacaf.search.exporting import COMPARED, OPSET, Images
from tacaf.train.config import load_config
from tacaf.vocabulary import InputError, Modality


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    home = args.run if args.run.is_dir() else args.run.parent
    out = (args.out or home / f"export-{args.to}").resolve()
    card = export(args, out)
    for name in card["files"]:
        print(f"{shown(out / name)}: {(out / name).stat().st_size / 2**20:.1f} MiB")
    worst, count, source = (card["check"][name] for name in ("largest_difference", "compared", "images"))
    print(f"largest difference to the run {worst:.2g}, {count} images: {source}")
    print(f"{shown(out / CARD)}: what the model is, how to prepare images, its scores")
    return 0


def export(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Write the export to `out` atomically. Returns its card.

    Raises InputError if `out` exists or the export's descriptors differ from the run's.
    """
    embedder = Embedder.load(args.run)
    if embedder.model is None:
        raise InputError(f"expected a finished run to export, got {args.run}, an ONNX export; give the run's folder")
    if out.exists():
        raise InputError(f"{out} already exists; remove it or give another --out")
    images, source = images_to_compare(args, embedder)
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(out) as folder:
        card = write_parts(args, embedder, images, folder)
        card["check"] = {"images": source, **exporting.compare(embedder, Embedder.load(folder), images)}
        write_card(folder, card)
    return card


def write_parts(args: argparse.Namespace, embedder: Embedder, images: Images, folder: Path) -> dict[str, Any]:
    """Write the weights, and a card without the comparison, for which the export is loaded with this card."""
    card = exporting.card_of(embedder, args.run)
    if args.to == "onnx":
        card["onnx"] = {"opset": OPSET, "input": "images", "output": "embedding"}
        exporting.write_onnx(embedder, images, folder)
    else:
        exporting.write_safetensors(args.run / MODEL if args.run.is_dir() else args.run, folder / MODEL)
    card["files"] = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    write_card(folder, card)
    return card


def images_to_compare(args: argparse.Namespace, embedder: Embedder) -> tuple[Images, str]:
    """Decoded images and their source: --images, or else the run's shard set, or else procedural pedestrians."""
    if args.images:
        return _folder_images(args.images, embedder), "--images"
    try:
        return _shard_images(args.run, embedder), "the run's shard set"
    except InputError as error:
        print(f"note: compared on procedural pedestrians, not on the run's shard set: {error}", file=sys.stderr)
        return _drawn_images(embedder), "procedural pedestrians"


def _folder_images(folder: Path, embedder: Embedder) -> Images:
    """The first images of a folder, for both modalities. Raises InputError if there are too few."""
    paths = images_below(folder)
    for text in left_out_below(folder):
        print(f"left out: {shown(text)}", file=sys.stderr)
    if len(paths) < COMPARED:
        raise InputError(f"expected at least {COMPARED} images in {folder}, got {len(paths)}; add some")
    return {
        modality: torch.stack([embedder.read(path, modality) for path in paths[:COMPARED]]) for modality in Modality
    }


def _shard_images(run: Path, embedder: Embedder) -> Images:
    """The run's first images of each modality. Raises InputError if the set is missing or has too few."""
    data = load_config(run / CONFIG_FILE, []).data
    index = ShardIndex.open(data.shards, data.remote)
    reader, images = ShardReader(index), {}
    for modality in Modality:
        rows = np.flatnonzero(np.asarray(index.columns["modality"]) == modality.code)[:COMPARED]
        if len(rows) < COMPARED:
            raise InputError(f"expected {COMPARED} {modality} images, got {len(rows)}")
        images[modality] = torch.stack([embedder.read(reader.pixels(int(row)), modality) for row in rows])
    return images


def _drawn_images(embedder: Embedder) -> Images:
    """Procedural pedestrians, encoded as JPEG and decoded again."""
    drawn = {}
    for modality in Modality:
        images = []
        for pid in range(1, COMPARED + 1):
            encoded = io.BytesIO()
            pixels, quality = picture(0, Shot(pid, 1, modality, 1))
            Image.fromarray(pixels).save(encoded, "JPEG", quality=quality)
            images.append(embedder.read(encoded.getvalue(), modality))
        drawn[modality] = torch.stack(images)
    return drawn


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=to_path, required=True, help="folder of a finished run")
    parser.add_argument("--to", choices=("safetensors", "onnx"), required=True, help="format of the export")
    parser.add_argument("--out", type=to_path, help="new folder; default: RUN/export-<to>")
    parser.add_argument(
        "--images",
        type=to_path,
        help="folder of images to compare on; default: the run's shard set, or procedural pedestrians if it is missing",
    )
    return parser.parse_args(argv)
