"""Exports of a trained model: its weights or graphs, the card that describes them, and the comparison with the run.

`safetensors` is the model without its classifiers, which depend on the training identities. `onnx` is one graph per
modality, because each modality has its own stem.
"""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tacaf.evaluation.results import read_result
from tacaf.files import write_whole
from tacaf.images import MEAN, STD
from tacaf.model.file import open_model, write_model
from tacaf.model.tacafnet import TacafNet
from tacaf.model.weights import CLASSIFIER
from tacaf.provenance import versions
from tacaf.run_files import RESULTS_FOLDER
from tacaf.search.embedder import Embedder
from tacaf.search.onnx_model import ONNX_FILES
from tacaf.vocabulary import InputError, Modality

TOLERANCE = 1e-4  # largest difference of any value of a descriptor from the run's
COMPARED = 7  # images of each modality: batches of 1, 2 and 4
OPSET = 20
LICENCE = (
    "TACAF's code is under Apache-2.0. The weights may be used only as their training data and any initial weights"
    " allow: SYSU-MM01, RegDB and LLCM are licensed for research; ImageNet weights have their own terms."
)
USE = (
    "Matching images of people between visible and infrared cameras, where those people and the law allow it. A match"
    " is a ranking, never an identification."
)
NO_USE = (
    "Covert or blanket surveillance; decisions about a person that no human reviews; inferring a person's origin,"
    " health, beliefs or other traits; any use that the law does not allow on people who have not agreed to it."
)
Images = Mapping[Modality, torch.Tensor]  # float32 [COMPARED, 3, H, W] each


def card_of(embedder: Embedder, run: Path) -> dict[str, Any]:
    """The fields of the card, except format, version, files and seal."""
    results = [read_result(path).as_json() for path in sorted((run / RESULTS_FOLDER).glob("*.json"))]
    return {
        **embedder.card.model_dump(mode="json"),
        "model_sha256": embedder.model_sha256,
        "preprocessing": {
            "colour": "RGB, rotated according to EXIF; the single channel of an infrared image three times",
            "grey_of_more_than_8_bits": "255 (value - low) / (high - low) of `scales`, clipped to 0 to 255 and rounded;"
            " per_image: low and high are the image's own 0.1 and 99.9 percentiles",
            "size": {"height": embedder.height, "width": embedder.width},
            "resize": (
                "bilinear, half-pixel centres, no antialiasing, rounded to whole grey levels; the aspect ratio is not"
                " preserved"
            ),
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
    """Write the run's model file without its classifiers, with the same metadata."""
    file, card = open_model(source)
    kept = file.read(name for name in file.tensors if CLASSIFIER not in name)
    write_model(target, kept, card.model_dump(mode="json", exclude={"format", "format_version", "seal"}))


def write_onnx(embedder: Embedder, images: Images, folder: Path) -> None:
    """Write a graph for each modality, without the exporter's notes, so that the same run gives the same bytes.

    A single graph with a switch would run both stems at every call, and most runtimes do not accept text as input.
    """
    assert embedder.model is not None
    for modality, name in ONNX_FILES.items():
        graph = _Descriptor(embedder.model, modality).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns about its own code
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
        _remove_notes(proto)
        write_whole(folder / name, proto.SerializeToString(deterministic=True))


def _remove_notes(proto: Any) -> None:
    """Remove the exporter's notes, which contain paths and source lines of this machine."""
    graph = proto.graph
    parts = (proto, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer)
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""


def compare(embedder: Embedder, exported: Embedder, images: Images) -> dict[str, Any]:
    """The largest difference of descriptors in batches of 1, 2 and 4, for the card.

    Raises InputError if it exceeds the tolerance.
    """
    worst = 0.0
    for modality, images_BCHW in images.items():
        for batch in images_BCHW.split([1, 2, COMPARED - 3]):
            exported_BD, expected_BD = (one.embed_prepared(batch, modality, "full") for one in (exported, embedder))
            worst = max(worst, float(np.abs(exported_BD - expected_BD).max()))
    if not worst <= TOLERANCE:
        raise InputError(
            f"expected the export and the run to agree to {TOLERANCE:g}, got a difference of {worst:.2g}; nothing was"
            " written; please report this with the versions of torch, onnx and onnxruntime"
        )
    return {"compared": COMPARED * len(images), "largest_difference": worst, "tolerance": TOLERANCE}


class _Descriptor(nn.Module):
    """The module that is exported: from one modality's images to full descriptors."""

    def __init__(self, model: TacafNet, modality: Modality) -> None:
        super().__init__()
        self.model, self.modality = model, modality

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.embed(images, self.modality)
