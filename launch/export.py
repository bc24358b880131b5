"""Hand a trained model on: python launch/export.py --run RUN --to safetensors|onnx [--out DIR] [--images DIR]

A folder with the weights and card.json: preprocessing, what the descriptor holds, protocol results, training set.
safetensors: the model without its classifiers, which name the training identities. onnx: visible.onnx and infrared.onnx
(the modalities have stems of their own), input `images` float32 [batch, 3, H, W] as card.json's preprocessing says,
output `embedding` float32 [batch, width]; checked against PyTorch on real images before anything is written.
"""

import argparse
import json
import logging
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from launch.config import load_config
from tacaf.data.augment import MEAN, STD
from tacaf.data.index import ShardIndex
from tacaf.data.photo import images_below
from tacaf.data.reader import ShardReader
from tacaf.inference import CARD, CARD_FORMAT, CARD_VERSION, MODEL, ONNX_FILES, Embedder, file_sha256
from tacaf.logs import versions
from tacaf.model.tacafnet import TacafNet
from tacaf.model.weights import CLASSIFIER
from tacaf.vocabulary import InputError, Modality

TOLERANCE = 1e-4  # largest difference of a descriptor's number between PyTorch and ONNX
COMPARED = 7  # images a modality: batches of 1, 2 and 4
OPSET = 20
LICENCE = (
    "TACAF's code is Apache-2.0. The weights carry what their training data and, if any, their initial weights allow:"
    " SYSU-MM01, RegDB and LLCM are licensed for research; ImageNet weights have terms of their own."
)
USE = (
    "Matching images of people between visible and infrared cameras, where those people and the law allow it. Not for"
    " decisions about people without a person's review; a match is a ranking, never an identification."
)


class _Descriptor(nn.Module):
    """The graph that is exported: one modality's images to full descriptors."""

    def __init__(self, model: TacafNet, modality: Modality) -> None:
        super().__init__()
        self.model, self.modality = model, modality

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.embed(images, self.modality)


def export(wanted: argparse.Namespace) -> Path:
    """Write the export, whole or not at all; its folder. InputError if it is there or does not agree."""
    embedder = Embedder.load(wanted.run)
    if wanted.out.exists():
        raise InputError(f"expected a new folder, got {wanted.out}, which is there; remove it or give another --out")
    wanted.out.resolve().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wanted.out.resolve().parent, prefix=".tmp-export-") as scratch:
        folder = Path(scratch) / "export"
        folder.mkdir()
        card = card_of(embedder, wanted.run)
        if wanted.to == "onnx":
            card["onnx"] = write_onnx(embedder, check_images(wanted), folder)
        else:
            write_safetensors(wanted.run / MODEL, folder / MODEL)
        card["files"] = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
        (folder / CARD).write_text(json.dumps(card, indent=1, allow_nan=False) + "\n")
        shutil.move(folder, wanted.out)
    return wanted.out


def card_of(embedder: Embedder, run: Path) -> dict[str, Any]:
    """Everything a user of the weights must know."""
    results = [json.loads(path.read_text()) for path in sorted((run / "results").glob("*.json"))]
    return {
        "format": CARD_FORMAT,
        "format_version": CARD_VERSION,
        **embedder.card,
        "model_sha256": embedder.model_sha256,
        "preprocessing": {
            "colour": "RGB, turned as EXIF says; an infrared image's one channel three times",
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
    }


def write_safetensors(source: Path, target: Path) -> None:
    """The run's file without its classifiers; the metadata goes along."""
    with safe_open(source, "pt") as file:
        names = [name for name in file.keys() if CLASSIFIER not in name]  # noqa: SIM118 - safe_open is no dict
        save_file({name: file.get_tensor(name) for name in names}, target, file.metadata())


def write_onnx(embedder: Embedder, images: dict[Modality, torch.Tensor], folder: Path) -> dict[str, Any]:
    """A graph a modality, compared with PyTorch; what the card says of it."""
    model = embedder.model
    if model is None:
        raise InputError("expected a run to export, got an ONNX export; give the run's folder")
    worst = 0.0
    for modality, name in ONNX_FILES.items():
        graph = _Descriptor(model, modality).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            program = torch.onnx.export(
                graph, (images[modality][:2],), dynamo=True, opset_version=OPSET, verbose=False, optimize=True,
                input_names=["images"], output_names=["embedding"], dynamic_shapes=({0: torch.export.Dim("batch")},),
            )  # fmt: skip
            assert program is not None
            program.save(folder / name)
        worst = max(worst, compare(folder / name, embedder, images[modality], modality))
    if worst > TOLERANCE:
        raise InputError(
            f"expected ONNX and PyTorch to agree to {TOLERANCE:g}, got a difference of {worst:.2g}; nothing is written:"
            " report it with the versions of torch, onnx and onnxruntime"
        )
    compared = {"images_compared": sum(map(len, images.values())), "largest_difference": worst}
    return {"opset": OPSET, "input": "images", "output": "embedding", **compared}


def compare(path: Path, embedder: Embedder, images_BCHW: torch.Tensor, modality: Modality) -> float:
    """The largest difference of a number of a descriptor, over batches of 1, 2 and 4 images."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch in images_BCHW.split([1, 2, len(images_BCHW) - 3]):
        (found_BD,) = session.run(["embedding"], {"images": batch.numpy()})
        worst = max(worst, float(np.abs(found_BD - embedder.embed_prepared(batch, modality)).max()))
    return worst


def check_images(wanted: argparse.Namespace) -> dict[Modality, torch.Tensor]:
    """Real images to compare on: of --images for both modalities, else test images of the run's shard set."""
    embedder = Embedder.load(wanted.run)
    if wanted.images:
        paths = images_below(wanted.images)[:COMPARED]
        if len(paths) < COMPARED:
            raise InputError(f"expected at least {COMPARED} images in {wanted.images}, got {len(paths)}; add some")
        images = torch.stack([embedder.read(path) for path in paths])
        return dict.fromkeys(Modality, images)
    config = load_config(wanted.run / "config.yaml", [])
    try:
        index = ShardIndex.open(config.data.shards, config.data.remote)
    except InputError as error:
        raise InputError(f"expected images to compare on: {error}; or give a folder of images with --images") from None
    reader, found = ShardReader(index), {}
    for modality in Modality:
        rows = np.flatnonzero(np.asarray(index.columns["modality"]) == modality.code)[:COMPARED]
        found[modality] = torch.stack([embedder.read(reader.read(int(row)).tobytes()) for row in rows])
    return found


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--to", choices=("safetensors", "onnx"), required=True)
    parser.add_argument("--out", type=Path, help="new folder; default: RUN/export-<to>")
    parser.add_argument("--images", type=Path, help="folder of images to compare ONNX on; default: the run's shards")
    wanted = parser.parse_args(argv)
    wanted.out = wanted.out or wanted.run / f"export-{wanted.to}"
    return wanted


def main(argv: Sequence[str] | None = None) -> int:
    try:
        wanted = parse(argv)
        folder = export(wanted)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    card = json.loads((folder / CARD).read_text())
    for name in card["files"]:
        print(f"{folder / name}: {(folder / name).stat().st_size / 2**20:.1f} MiB")
    if "onnx" in card:
        print(f"largest difference to PyTorch {card['onnx']['largest_difference']:.2g}")
    print(f"{folder / CARD}: what it is, how to prepare images, what it scored")
    return 0


if __name__ == "__main__":
    sys.exit(main())
