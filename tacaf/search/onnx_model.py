"""An ONNX export as `Embedder` uses it: a graph for each modality, run by onnxruntime on the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tacaf.extras import missing
from tacaf.files import shown
from tacaf.search.card import ExportCard, checked_file, read_card
from tacaf.search.loaded_model import LoadedModel, slices_of
from tacaf.vocabulary import Embedding, InputError, Modality

ONNX_FILES = {modality: f"{modality}.onnx" for modality in Modality}


def load_onnx(folder: Path) -> LoadedModel:
    """The model in an export's folder.

    Raises InputError if onnxruntime is not installed or a graph does not match the card.
    """
    try:
        import onnxruntime
    except ImportError:
        raise missing("onnxruntime", "an ONNX model") from None
    card = read_card(folder)
    sessions = {}
    for modality, name in ONNX_FILES.items():
        path = checked_file(folder, name, card)
        try:
            sessions[modality] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own errors derive only from Exception
            raise InputError(
                f"{shown(path)}: expected an ONNX graph, got: {_line(error)}; export the run again"
            ) from None
        _check_graph(sessions[modality], path, card)

    def run(images_BCHW: torch.Tensor, modality: Modality, embedding: Embedding) -> np.ndarray:
        (full_BD,) = sessions[modality].run(["embedding"], {"images": images_BCHW.numpy()})
        if embedding == "full":
            return full_BD
        slices = slices_of(card.embedding, embedding)
        kept_BD = np.concatenate([full_BD[:, start:stop] for start, stop in slices], axis=1)
        return kept_BD / np.linalg.norm(kept_BD, axis=1, keepdims=True)

    return LoadedModel(
        run=run,
        height=card.height,
        width=card.width,
        card=card,
        sha256=card.model_sha256,
        scales=card.scales,
        device=torch.device("cpu"),
        network=None,
    )


def _check_graph(session: Any, path: Path, card: ExportCard) -> None:
    """Raise InputError unless the graph has the inputs and outputs that the card describes."""
    inputs, outputs = (
        [(one.name, one.shape[1:]) for one in some] for some in (session.get_inputs(), session.get_outputs())
    )
    expected = [("images", [3, card.height, card.width])], [("embedding", [card.embedding.width])]
    if (inputs, outputs) != expected:
        raise InputError(
            f"{shown(path)}: expected {expected[0]} to {expected[1]}, got {inputs} to {outputs}; export the run again"
        )


def _line(error: Exception) -> str:
    return shown(" ".join(str(error).split()))[:200]
