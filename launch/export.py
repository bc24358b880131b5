"""Hand a trained model on: python launch/export.py --run RUN --to safetensors|onnx [--out DIR] [--images DIR]

A folder with the weights and card.json: preprocessing, what the descriptor holds, protocol results, training set.
safetensors: the model without its classifiers, which name the training identities. onnx: visible.onnx and infrared.onnx
(the modalities have stems of their own), input `images` float32 [batch, 3, H, W] as card.json's preprocessing says,
output `embedding` float32 [batch, width]. Both are checked against the run on decoded images before anything is there.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("launch.export")

import argparse
import io
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from shards.pedestrians.synth import Shot, picture
from tacaf.command import Parser, entry, to_path
from tacaf.data.augment import MEAN, STD
from tacaf.data.index import ShardIndex
from tacaf.data.photo import images_below, left_out_below
from tacaf.data.reader import ShardReader
from tacaf.evaluation.results import read_result
from tacaf.files import sha256_of, shown, whole_folder, write_whole
from tacaf.model.card import CARD, write_card
from tacaf.model.file import MODEL, open_model, write_model
from tacaf.model.tacafnet import TacafNet
from tacaf.model.weights import CLASSIFIER
from tacaf.provenance import versions
from tacaf.search.embedder import ONNX_FILES, Embedder
from tacaf.train.config import load_config
from tacaf.vocabulary import InputError, Modality

TOLERANCE = 1e-4  # largest difference of a descriptor's number from the run's
COMPARED = 7  # images a modality: batches of 1, 2 and 4
OPSET = 20
LICENCE = (
    "TACAF's code is Apache-2.0. The weights carry what their training data and, if any, their initial weights allow:"
    " SYSU-MM01, RegDB and LLCM are licensed for research; ImageNet weights have terms of their own."
)
USE = (
    "Matching images of people between visible and infrared cameras, where those people and the law allow it. A match"
    " is a ranking, never an identification."
)
NO_USE = (
    "Covert or blanket surveillance; decisions about a person that no person reviews; finding out a person's origin,"
    " health, beliefs or other traits; any use on people who did not agree to it, where the law does not allow it."
)
Images = dict[Modality, torch.Tensor]  # float32 [COMPARED, 3, H, W] each


class _Descriptor(nn.Module):
    """The graph that is exported: one modality's images to full descriptors."""

    def __init__(self, model: TacafNet, modality: Modality) -> None:
        super().__init__()
        self.model, self.modality = model, modality

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.embed(images, self.modality)


def export(wanted: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """Write the export, whole or not at all; its folder and card. InputError if it is there or does not agree."""
    embedder = Embedder.load(wanted.run)
    if embedder.model is None:
        raise InputError(f"expected a finished run to export, got {wanted.run}, an ONNX export; give the run's folder")
    if wanted.out.exists():
        raise InputError(f"expected a new folder, got {wanted.out}, which is there; remove it or give another --out")
    images, source = check_images(wanted, embedder)
    wanted.out.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(wanted.out) as folder:
        card = write_parts(wanted, embedder, images, folder)
        card["check"] = {"images": source, **check(embedder, Embedder.load(folder), images)}
        write_card(folder, card)
    return wanted.out, card


def write_parts(wanted: argparse.Namespace, embedder: Embedder, images: Images, folder: Path) -> dict[str, Any]:
    """The weights, and a card that lacks only what the check will find."""
    card = card_of(embedder, wanted.run)
    if wanted.to == "onnx":
        card["onnx"] = {"opset": OPSET, "input": "images", "output": "embedding"}
        write_onnx(embedder, images, folder)
    else:
        write_safetensors(wanted.run / MODEL if wanted.run.is_dir() else wanted.run, folder / MODEL)
    card["files"] = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    write_card(folder, card)
    return card


def card_of(embedder: Embedder, run: Path) -> dict[str, Any]:
    """Everything a user of the weights must know."""
    results = [read_result(path) for path in sorted((run / "results").glob("*.json"))]
    return {
        **embedder.card,
        "model_sha256": embedder.model_sha256,
        "preprocessing": {
            "colour": "RGB, turned as EXIF says; an infrared image's one channel three times",
            "grey_of_more_than_8_bits": "255 (value - low) / (high - low) of `scales`, clipped to 0 to 255 and rounded;"
            " per_image: low and high are the image's own 0.1 and 99.9 percentiles",
            "size": {"height": embedder.height, "width": embedder.width},
            "resize": "bilinear, half-pixel centres, no antialiasing, rounded to whole grey levels; aspect not kept",
            "mean": MEAN.tolist(),
            "std": STD.tolist(),
            "layout": "float32 [batch, 3, height, width], (value / 255 - mean) / std",
        },
        "results": [{name: value for name, value in result.items() if name != "trials"} for result in results],
        "exported_with": versions(),
        "licence": LICENCE,
        "intended_use": USE,
        "not_for": NO_USE,
    }


def write_safetensors(source: Path, target: Path) -> None:
    """The run's file without its classifiers; the metadata goes along."""
    file, card = open_model(source)
    kept = file.read(name for name in file.tensors if CLASSIFIER not in name)
    write_model(target, kept, card.model_dump(mode="json", exclude={"format", "format_version", "seal"}))


def write_onnx(embedder: Embedder, images: Images, folder: Path) -> None:
    """A graph a modality, without the exporter's notes (paths and lines of source): the same run gives the same bytes.

    One file with a switch inside would carry both stems through every call, and most runtimes take no words as input.
    """
    assert embedder.model is not None
    for modality, name in ONNX_FILES.items():
        graph = _Descriptor(embedder.model, modality).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            program = torch.onnx.export(
                graph,
                (images[modality][:2],),
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                optimize=True,
                input_names=["images"],
                output_names=["embedding"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
        assert program is not None
        proto = program.model_proto
        for part in (
            proto,
            proto.graph,
            *proto.graph.node,
            *proto.graph.value_info,
            *proto.graph.input,
            *proto.graph.output,
            *proto.graph.initializer,
        ):
            del part.metadata_props[:]
            part.doc_string = ""
        write_whole(folder / name, proto.SerializeToString(deterministic=True))


def check(embedder: Embedder, exported: Embedder, images: Images) -> dict[str, Any]:
    """Compare descriptors of batches of 1, 2 and 4 images; what the card says. InputError beyond the tolerance."""
    worst = 0.0
    for modality, images_BCHW in images.items():
        for batch in images_BCHW.split([1, 2, COMPARED - 3]):
            found_BD, expected_BD = (one.embed_prepared(batch, modality, "full") for one in (exported, embedder))
            worst = max(worst, float(np.abs(found_BD - expected_BD).max()))
    if not worst <= TOLERANCE:
        raise InputError(
            f"expected the export and the run to agree to {TOLERANCE:g}, got a difference of {worst:.2g}; nothing is"
            " written: report it with the versions of torch, onnx and onnxruntime"
        )
    return {"compared": COMPARED * len(images), "largest_difference": worst, "tolerance": TOLERANCE}


def check_images(wanted: argparse.Namespace, embedder: Embedder) -> tuple[Images, str]:
    """Decoded images to compare on, and where from: --images, else the run's shard set, else drawn pedestrians."""
    if wanted.images:
        paths = images_below(wanted.images)
        for text in left_out_below(wanted.images):
            print(f"left out: {shown(text)}", file=sys.stderr)
        if len(paths) < COMPARED:
            raise InputError(f"expected at least {COMPARED} images in {wanted.images}, got {len(paths)}; add some")
        return {
            modality: torch.stack([embedder.read(path, modality) for path in paths[:COMPARED]]) for modality in Modality
        }, "--images"
    try:
        return shard_images(wanted.run, embedder), "the run's shard set"
    except InputError:
        return drawn_images(embedder), "drawn pedestrians"


def shard_images(run: Path, embedder: Embedder) -> Images:
    """The first images of each modality. InputError where the set is not there, or has not as many."""
    data = load_config(run / "config.yaml", []).data
    index = ShardIndex.open(data.shards, data.remote)
    reader, found = ShardReader(index), {}
    for modality in Modality:
        rows = np.flatnonzero(np.asarray(index.columns["modality"]) == modality.code)[:COMPARED]
        if len(rows) < COMPARED:
            raise InputError(f"expected {COMPARED} {modality} images, got {len(rows)}")
        found[modality] = torch.stack([embedder.read(reader.pixels(int(row)), modality) for row in rows])
    return found


def drawn_images(embedder: Embedder) -> Images:
    """Procedural pedestrians, as JPEGs."""
    found = {}
    for modality in Modality:
        images = []
        for pid in range(1, COMPARED + 1):
            encoded = io.BytesIO()
            pixels, quality = picture(0, Shot(pid, 1, modality, 1))
            Image.fromarray(pixels).save(encoded, "JPEG", quality=quality)
            images.append(embedder.read(encoded.getvalue(), modality))
        found[modality] = torch.stack(images)
    return found


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=to_path, required=True, help="folder of a finished run")
    parser.add_argument("--to", choices=("safetensors", "onnx"), required=True)
    parser.add_argument("--out", type=to_path, help="new folder; default: RUN/export-<to>")
    parser.add_argument(
        "--images", type=to_path, help="folder of images to compare on; default: the run's shards, or drawn ones"
    )
    wanted = parser.parse_args(argv)
    home = wanted.run if wanted.run.is_dir() else wanted.run.parent
    wanted.out = (wanted.out or home / f"export-{wanted.to}").resolve()
    return wanted


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    wanted = parse(argv)
    folder, card = export(wanted)
    for name in card["files"]:
        print(f"{shown(folder / name)}: {(folder / name).stat().st_size / 2**20:.1f} MiB")
    worst, count, source = (card["check"][name] for name in ("largest_difference", "compared", "images"))
    print(f"largest difference to the run {worst:.2g}, {count} images: {source}")
    print(f"{shown(folder / CARD)}: what it is, how to prepare images, what it scored")
    return 0
